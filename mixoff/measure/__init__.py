"""Measurements with a model or a machine at hand: speed, recall, quality, load time, transfers.

Each file answers one question and returns a data frame or a small dataclass; `mixoff.plots` draws
them. What needs a recording alone is in `mixoff.simulate`.
"""
