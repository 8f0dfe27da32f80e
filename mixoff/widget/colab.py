"""Colab, which shows what a widget does only while a cell runs. Knows the front end; no chats."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version as version_of
from typing import Any

from mixoff.errors import MixoffError

_EVENTS_AT_ONCE = 10
_FIRST_DEAF = 7  # of ipykernel's versions: whatever polls, events wait for the cell's end
_PAUSE_S = 0.02  # between looks for clicks: nobody notices, and the model has the processor


def in_colab() -> bool:
    """Return whether this is a Colab notebook."""
    return "google.colab" in sys.modules


def in_notebook() -> bool:
    """Return whether a kernel runs this, for a front end that may show widgets."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def serve_events(is_over: Callable[[], bool], begin: Callable[[], None]) -> None:
    """Begin, keep the cell busy and serve clicks in it, until it is over.

    Raises
    ------
    MixoffError
        If this is no notebook, its kernel can't do it, or jupyter_ui_poll isn't installed.
    """
    _check_kernel()
    poll_events = _poll_events()
    begin()
    with poll_events() as poll:
        while not is_over():
            poll(_EVENTS_AT_ONCE)
            time.sleep(_PAUSE_S)


def _check_kernel() -> None:
    if not in_notebook():
        raise MixoffError("There is no notebook to show a chat box in: use mixoff.widget.repl.")
    version = version_of("ipykernel")
    if int(version.split(".")[0]) >= _FIRST_DEAF:
        raise MixoffError(
            f"ipykernel {version} serves no clicks while a cell runs: show the box as the last "
            "line of a cell, which needs no run() but in Colab."
        )


def _poll_events() -> Callable[[], Any]:
    try:
        found: Callable[[], Any] = import_module("jupyter_ui_poll").ui_events
    except ImportError:
        raise MixoffError(
            "run() needs the package jupyter_ui_poll: install it with "
            "%pip install jupyter_ui_poll, and run this cell again."
        ) from None
    return found
