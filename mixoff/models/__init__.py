"""A transformers model whose experts come from a cache.

Knows transformers' modules and loading; knows nothing of text or of how a cache decides. Read
`build.py` first, then `layers/experts.py`.
"""
