"""The chat box of a notebook, and a text chat for consoles without widgets.

Knows widgets and a `Chat`; nothing of models or caches but their counts. Read `session.py` first.
"""

from mixoff.widget.box import ChatWidget
from mixoff.widget.colab import in_colab
from mixoff.widget.terminal import repl

__all__ = ["ChatWidget", "in_colab", "repl"]
