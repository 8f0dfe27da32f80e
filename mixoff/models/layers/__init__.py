"""The modules that stand in for a model's own. Each computes what the original computes.

Read `experts.py` first; the others make one token cheap.
"""
