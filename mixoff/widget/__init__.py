"""The chat box of a notebook, and a chat for where there are no widgets: faces without logic."""

from mixoff.widget.box import ChatWidget
from mixoff.widget.colab import in_colab
from mixoff.widget.terminal import repl

__all__ = ["ChatWidget", "in_colab", "repl"]
