"""Kernels for CPUs, compiled by LLVM while the program runs; needs llvmlite.

Knows torch tensors and this CPU; knows nothing of models. Read `operations.py` first: it has the
operations that `mixoff.kernels.base` declares. `codegen` writes the code, `compile.py` compiles it,
`threads.py` divides its work among threads.
"""
