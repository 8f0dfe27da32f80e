"""The modules that replace a model's own. Each computes what the original computes.

Read `experts.py` first; the others make one token cheap on a CPU.
"""
