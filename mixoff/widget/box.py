"""The chat box of a notebook: connects its controls, displays itself, waits for replies.

Clicks are handled by the notebook's thread, which never waits for a model; a worker thread reads
the reply.
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
_IN_COLAB = "Colab shows replies only while a cell runs: run box.run() in a cell; Close ends it."
_OPEN = "This cell is busy until you press Close, so that replies can be shown."
_CLOSED = "This box no longer answers: run its cell again to go on."


class ChatWidget:
    """A chat box for a notebook: streamed replies, settings, and counts of the expert cache.

    As the last line of a cell it is displayed. In Colab, use `run`, which keeps the cell busy.
    Several boxes may serve one chat, one reply at a time.

    Parameters
    ----------
    chat
        A conversation, new or with turns.

    Raises
    ------
    MixoffError
        If the chat was closed.
    """

    def __init__(self, chat: "Chat") -> None:
        if chat.is_closed:
            raise MixoffError(LOADED_AGAIN)
        self._session = Session(chat)
        self._is_open, self._closing = False, Event()  # whether `run` runs; set to end it
        self._connect()

    @property
    def controls(self) -> Controls:
        """The box's widgets, for a notebook that arranges them otherwise."""
        return self._session.controls

    def ask(self, text: str) -> str:
        """Send a message, as from the text field, wait for the reply, and return it.

        An interrupt stops the reply, and KeyboardInterrupt is raised.

        Raises
        ------
        MixoffError
            If a reply is running, or this one fails; the box shows the error, too.
        """
        worker = self._session.begin(text)
        self.wait()
        if worker.problem is not None:
            raise MixoffError(worker.problem)
        return worker.text.strip()

    def wait(self) -> None:
        """Wait until this box's reply has ended, if one runs; an interrupt stops the reply."""
        if (worker := self._session.worker) is None:
            return
        try:
            worker.wait()
        except KeyboardInterrupt:
            self._session.stop()
            worker.wait()
            raise

    def run(self) -> None:
        """Display the box and handle its clicks in this cell until Close, as Colab requires.

        Colab updates widgets only while a cell runs. An interrupt ends the cell as Close does.
        This needs ``jupyter_ui_poll``, which ``pip install mixoff[colab]`` installs.

        Raises
        ------
        MixoffError
            If jupyter_ui_poll isn't installed, there is no kernel, or one that can't handle clicks
            while a cell runs (ipykernel 7), or the box or chat was closed.
        """
        self._session.check_open()
        self._closing.clear()
        self._set_open(True)
        try:
            serve_events(self._closing.is_set, begin=self._show)
        except KeyboardInterrupt:
            pass  # ends the cell as Close does
        finally:
            self._set_open(False)
            self._session.stop()
            self.wait()
        self._session.notify(_CLOSED)

    def _set_open(self, on: bool) -> None:
        self._is_open = on
        self.controls.set_open(on)

    def close(self) -> None:
        """Remove the box from all outputs, and its widgets from ipywidgets' registry."""
        self._session.shut()
        self._closing.set()
        self.wait()
        self.controls.dispose()

    def __repr__(self) -> str:
        return SHUT if self._session.is_shut else _NO_NOTEBOOK

    def _repr_mimebundle_(self, **options: object) -> dict[str, object]:
        """Return the box for a front end with widgets, and a sentence for others."""
        if self._session.is_shut or not in_notebook():
            return {"text/plain": repr(self)}
        if in_colab() and not self._session.is_replying:
            self._session.notify(_OPEN if self._is_open else _IN_COLAB)
        model = {"version_major": 2, "version_minor": 0, "model_id": self.controls.view.model_id}
        return {"text/plain": _NO_WIDGETS, "application/vnd.jupyter.widget-view+json": model}

    def _show(self) -> None:
        from IPython.display import display

        display(self)  # type: ignore[no-untyped-call]

    def _connect(self) -> None:
        controls, session = self.controls, self._session
        controls.stop.on_click(lambda _: session.stop())
        controls.close.on_click(lambda _: self._closing.set())
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

    def _on_click(self, button: Any, action: Callable[[], object]) -> None:
        button.on_click(lambda _: self._session.perform(action))

    def _on_change(self, control: Any, action: Callable[[Any], object]) -> None:
        control.observe(
            lambda change: self._session.perform(partial(action, change["new"])), "value"
        )
