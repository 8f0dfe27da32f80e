"""Before anything is loaded: what a checkpoint needs, what a machine has, what would lie where.

Knows bytes and budgets; moves nothing. Read `plan.py` first.
"""
