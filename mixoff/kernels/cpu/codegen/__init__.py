"""Writers of LLVM code, one file a kernel. Know vectors and layouts; know nothing of tensors.

Read `multiply.py` first, and `ir.py` with it; `parts.py` and `sequence.py` divide work among
threads.
"""
