"""The chat box of a notebook: wires its controls, shows itself, and waits where somebody must.

Clicks are served by the notebook's thread, which never waits for a model; a reply is read by a
thread of its own.
"""

from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from mixoff.errors import MixoffError
from mixoff.widget.colab import in_colab, in_notebook, serve_events
from mixoff.widget.controls import Controls
from mixoff.widget.session import LOADED_AGAIN, SHUT, Session

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat

_NO_NOTEBOOK = "A ChatWidget is shown in a notebook; here, mixoff.widget.repl(chat) chats in text."
_NO_WIDGETS = (
    "A chat box, in a notebook that shows widgets; elsewhere use mixoff.widget.repl(chat)."
)
_IN_COLAB = "Colab shows replies only while a cell runs: run box.run() in a cell, to its Close."
_OPEN = "This cell is busy until you press Close, so that replies can be shown."
_CLOSED = "This box answers no more: run its cell again to go on."


class ChatWidget:
    """A chat box for a notebook: a conversation that streams, its settings, what the cache does.

    The last line of a cell shows it. In Colab, `run` keeps the cell busy, as it must be there.
    Several boxes may serve one chat, one reply at a time.

    Parameters
    ----------
    chat
        A conversation, begun or not.

    Raises
    ------
    MixoffError
        If the chat was closed.
    """

    def __init__(self, chat: "Chat") -> None:
        if chat.is_closed:
            raise MixoffError(LOADED_AGAIN)
        self._session = Session(chat)
        self._is_open, self._over = False, Event()  # whether `run` runs; what asks it to return
        self._wire()

    @property
    def controls(self) -> Controls:
        """The widgets that the box consists of, for a notebook that arranges them otherwise."""
        return self._session.controls

    def ask(self, text: str) -> str:
        """Send a message as if it were typed, wait for the reply, and return it.

        An interrupt stops the reply and passes through.

        Raises
        ------
        MixoffError
            If a reply is running, or this one fails, which the box shows, too.
        """
        worker = self._session.begin(text)
        self.wait()
        if worker.problem is not None:
            raise MixoffError(worker.problem)
        return worker.text.strip()

    def wait(self) -> None:
        """Wait until this box's reply has ended, if one runs; an interrupt stops it."""
        if (worker := self._session.worker) is None:
            return
        try:
            worker.wait()
        except KeyboardInterrupt:
            self._session.stop()
            worker.wait()
            raise

    def run(self) -> None:
        """Show the box and serve it in this cell until Close, as Colab needs it.

        Colab shows what a widget does only while a cell runs. An interrupt ends it as Close does.
        It needs ``jupyter_ui_poll``, which ``pip install mixoff[colab]`` brings.

        Raises
        ------
        MixoffError
            If jupyter_ui_poll isn't installed, the kernel is none or one that can't serve clicks
            while a cell runs (ipykernel 7), or the box or chat was closed.
        """
        self._session.check_open()
        self._over.clear()
        self._set_open(True)
        try:
            serve_events(self._over.is_set, begin=self._show)
        except KeyboardInterrupt:
            pass  # the other way to end it
        finally:
            self._set_open(False)
            self._session.stop()
            self.wait()
        self._session.tell(_CLOSED)

    def _set_open(self, on: bool) -> None:
        self._is_open = on
        self.controls.set_open(on)

    def close(self) -> None:
        """Remove the box wherever it is shown, and let go of what ipywidgets keeps of it."""
        self._session.shut()
        self._over.set()
        self.wait()
        self.controls.dispose()

    def __repr__(self) -> str:
        return SHUT if self._session.is_shut else _NO_NOTEBOOK

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        """Return the box for a front end that shows widgets, a sentence for any other."""
        if self._session.is_shut or not in_notebook():
            return {"text/plain": repr(self)}
        if in_colab() and not self._session.is_replying:
            self._session.tell(_OPEN if self._is_open else _IN_COLAB)
        model = {"version_major": 2, "version_minor": 0, "model_id": self.controls.view.model_id}
        return {"text/plain": _NO_WIDGETS, "application/vnd.jupyter.widget-view+json": model}

    def _show(self) -> None:
        from IPython.display import display

        display(self)  # type: ignore[no-untyped-call]

    def _wire(self) -> None:
        controls, session = self.controls, self._session
        controls.stop.on_click(lambda _: session.stop())
        controls.close.on_click(lambda _: self._over.set())
        self._on_click(controls.send, session.send)
        self._on_click(controls.regenerate, session.begin)
        self._on_click(controls.clear, session.clear)
        self._on_click(controls.save, session.save)
        self._on_click(controls.restore, session.restore)
        for name, slider in controls.sampling.items():
            self._on_change(slider, partial(session.set_sampling, name))
        self._on_change(controls.system, session.set_system)
        self._on_change(controls.slots, lambda slots: session.tune(slots=slots))
        self._on_change(controls.prefetch, lambda prefetch: session.tune(prefetch=prefetch))

    def _on_click(self, button: Any, act: Callable[[], object]) -> None:
        button.on_click(lambda _: self._session.alone(act))

    def _on_change(self, control: Any, act: Callable[[Any], object]) -> None:
        control.observe(lambda change: self._session.alone(partial(act, change["new"])), "value")
