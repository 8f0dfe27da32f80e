"""Events of widgets in Colab, which updates them only while a cell runs. Knows no chats."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version as version_of
from typing import Any

from mixoff.errors import MixoffError

_EVENTS_AT_ONCE = 10
_FIRST_DEFERRING = 7  # major version of ipykernel since which events wait for the cell's end
_PAUSE_S = 0.02  # between polls: too short to be noticed, and the model has the processor


def in_colab() -> bool:
    """Return whether this process is a Colab notebook's kernel."""
    return "google.colab" in sys.modules


def in_notebook() -> bool:
    """Return whether this process is a kernel, whose front end may show widgets."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def serve_events(is_over: Callable[[], bool], begin: Callable[[], None]) -> None:
    """Call `begin`, keep the cell busy and handle clicks in it, until `is_over` returns True.

    Raises
    ------
    MixoffError
        If this isn't a notebook, its kernel defers clicks, or jupyter_ui_poll isn't installed.
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
    if int(version.split(".")[0]) >= _FIRST_DEFERRING:
        raise MixoffError(
            f"ipykernel {version} handles no clicks while a cell runs: show the box as the last "
            "line of a cell; only Colab needs run()."
        )


def _poll_events() -> Callable[[], Any]:
    try:
        ui_events: Callable[[], Any] = import_module("jupyter_ui_poll").ui_events
    except ImportError:
        raise MixoffError(
            "run() needs the package jupyter_ui_poll: install it with "
            "%pip install jupyter_ui_poll, and run this cell again."
        ) from None
    return ui_events
