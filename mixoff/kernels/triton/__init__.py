"""Kernels for GPUs, written in Triton. Know torch tensors; know nothing of models.

Read `operations.py` first: it has the operations that `mixoff.kernels.base` declares.
"""
