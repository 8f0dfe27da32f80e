"""A conversation: template, KV cache, sampling, streaming, saving.

Knows text, tokens and a transformers model; nothing of how experts are cached. Read `chat.py`
first.
"""
