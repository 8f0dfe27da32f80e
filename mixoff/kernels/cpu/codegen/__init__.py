"""One file a kernel, which writes its LLVM code; read `multiply.py` first, and `ir.py` with it."""
