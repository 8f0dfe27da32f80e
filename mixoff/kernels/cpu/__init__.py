"""Kernels for CPUs, compiled by LLVM while the program runs; needs llvmlite.

Read `operations.py` first: it is what the room's seam (`mixoff.kernels.base`) calls. `codegen`
writes the code, `compile.py` compiles it, `threads.py` runs it on a team of threads.
"""
