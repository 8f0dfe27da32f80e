"""Kernels for GPUs, written in Triton. Read `operations.py` first."""
