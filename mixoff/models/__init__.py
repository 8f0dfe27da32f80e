"""A transformers model whose experts are read from a cache.

Knows transformers' modules and loading; knows nothing of text or of what a cache evicts. Read
`run.py` and `build.py` first, then `layers/experts.py`.
"""
