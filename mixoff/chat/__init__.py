"""A conversation: template, KV cache, sampling, streaming, saving.

Knows text, tokens and a transformers model; nothing of how experts are cached. Read `chat.py`
first.
"""

from mixoff.chat.chat import Chat
from mixoff.chat.load import load_chat
from mixoff.chat.reply import ReplyStats
from mixoff.chat.sampling import Sampling

__all__ = ["Chat", "ReplyStats", "Sampling", "load_chat"]
