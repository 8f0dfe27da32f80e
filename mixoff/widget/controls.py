"""The widgets of a chat box and their layout. Knows widgets; nothing of chats.

Only widgets of both ipywidgets 7.7 and 8 are used, so that the box works in Colab and elsewhere.
"""

from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets

from mixoff.chat.sampling import Sampling
from mixoff.widget.stylesheet import STYLESHEET

_LABEL = {"description_width": "150px"}
_NO_LABEL = {"description_width": "0"}  # hidden, but read out by screen readers
_HIDDEN, _SHOWN = "none", None


class Controls:
    """The widgets of a chat box, without any observers.

    Parameters
    ----------
    sampling
        First values of its sliders.
    num_experts
        Number of experts of a layer; with 0 there are no sliders and gauges of a cache.
    can_prefetch
        Whether the model has a prefetcher; if not, there is no slider for it.
    """

    def __init__(self, sampling: Sampling, num_experts: int, *, can_prefetch: bool) -> None:
        self.log, self.live = _html("mixoff-log"), _html("mixoff-live")
        self.status, self.gauges = _html("mixoff-status"), _html("mixoff-gauges")
        self.message = _described(
            ipywidgets.Textarea,
            "What to say to the model",
            description="Message",
            placeholder="Message",
            rows=3,
            style=_NO_LABEL,
        )
        self._make_buttons()
        self._make_settings(sampling)
        self._make_cache_sliders(num_experts)
        self.view = self._laid_out(has_cache=num_experts > 0, can_prefetch=can_prefetch)
        self.set_replying(False)
        self.set_open(False)

    def _make_buttons(self) -> None:
        self.send = _button("Send", "paper-plane", "Send the message", "primary")
        self.stop = _button("Stop", "stop", "End the reply within one token", "danger")
        self.regenerate = _button("Regenerate", "refresh", "Replace the last reply by another one")
        self.clear = _button("Clear", "trash", "Forget the conversation")
        self.save = _button("Save", "download", "Write the conversation to the file")
        self.restore = _button("Restore", "upload", "Go on with the conversation in the file")
        self.close = _button("Close", "times", "End this cell, so that other cells can run again")

    def _make_cache_sliders(self, num_experts: int) -> None:
        self.slots = _slider(
            "Slots per layer",
            "Experts of each layer on the device; takes effect at once",
            1,
            num_experts or 1,
            1,
        )
        self.prefetch = _slider(
            "Prefetched experts",
            "Experts fetched ahead for the next layer; 0 for none",
            0,
            num_experts,
            0,
        )

    def _make_settings(self, sampling: Sampling) -> None:
        self.system = _described(
            ipywidgets.Textarea,
            "Instructions for the whole conversation",
            description="System prompt",
            rows=2,
            style=_LABEL,
        )
        self.sampling = {
            "temperature": _slider(
                "Temperature",
                "0 always takes the most probable token",
                0,
                2,
                sampling.temperature,
                0.05,
            ),
            "top_p": _slider(
                "Top-p",
                "Draw from the most probable tokens of this share",
                0.05,
                1,
                sampling.top_p,
                0.05,
            ),
            "max_new_tokens": _slider(
                "New tokens", "The longest reply", 1, 1024, sampling.max_new_tokens
            ),
        }
        self.path = _described(
            ipywidgets.Text,
            "The file for Save and Restore",
            value="conversation.json",
            description="File",
            style=_LABEL,
        )

    def _laid_out(self, *, has_cache: bool, can_prefetch: bool) -> Any:
        # A reversed column stays scrolled to its end, so that the newest text is always visible.
        view = _column(self.live, self.log, overflow="auto", height="380px")
        view.layout.flex_flow = "column-reverse"
        view.add_class("mixoff-view")
        prefetch = (self.prefetch,) if can_prefetch else ()
        cache = (self.slots, *prefetch, self.gauges) if has_cache else ()
        chat = _column(
            view,
            self.message,
            _row(self.send, self.stop, self.regenerate, self.clear, self.close),
            self.status,
            flex="3 1 380px",
        )
        settings = _column(
            self.system,
            *self.sampling.values(),
            *cache,
            self.path,
            _row(self.save, self.restore),
            flex="2 1 320px",
        )
        style = _html("mixoff-style", STYLESHEET)
        style.layout.display = _HIDDEN  # it applies nevertheless, and takes no space
        box = _row(style, chat, settings)
        box.add_class("mixoff-box")
        return box

    def set_replying(self, on: bool) -> None:
        """Enable the controls that may be used during a reply, or without one."""
        for control in (self.send, self.regenerate, self.clear, self.save, self.restore):
            control.disabled = on
        self.system.disabled = on
        self.stop.disabled = not on
        self.live.layout.display = _SHOWN if on else _HIDDEN

    def set_open(self, on: bool) -> None:
        """Show or hide Close, which is needed only while the box keeps its cell busy."""
        self.close.layout.display = _SHOWN if on else _HIDDEN

    def dispose(self) -> None:
        """Close all widgets, which ipywidgets would otherwise keep forever."""
        unused = (self.slots, self.prefetch, self.gauges)  # not in the view without a cache
        for widget in {id(w): w for root in (self.view, *unused) for w in _parts(root)}.values():
            widget.close()


def _parts(widget: Any) -> Iterator[Any]:
    """Yield a widget, its descendants, and their layouts and styles, which are widgets, too."""
    for child in getattr(widget, "children", ()):
        yield from _parts(child)
    yield from (part for name in ("layout", "style") if (part := getattr(widget, name, None)))
    yield widget


def _described(kind: Callable[..., Any], tooltip: str, **traits: Any) -> Any:
    """Return a widget of full width, with a tooltip under the name that this version uses."""
    names = kind.class_trait_names()  # type: ignore[attr-defined]
    name = "tooltip" if "tooltip" in names else "description_tooltip"
    return kind(layout=ipywidgets.Layout(width="auto"), **{name: tooltip}, **traits)


def _button(name: str, icon: str, tooltip: str, style: str = "") -> Any:
    return _described(ipywidgets.Button, tooltip, description=name, icon=icon, button_style=style)


def _slider(name: str, tooltip: str, low: float, high: float, value: float, step: float = 1) -> Any:
    """Return a slider that changes its value on release; a value beyond an end extends it."""
    return _described(
        ipywidgets.IntSlider if step == 1 else ipywidgets.FloatSlider,
        tooltip,
        description=name,
        min=min(low, value),
        max=max(high, value),
        value=value,
        step=step,
        continuous_update=False,
        style=_LABEL,
    )


def _html(name: str, value: str = "") -> Any:
    widget = ipywidgets.HTML(value)
    widget.add_class(name)
    return widget


def _column(*children: Any, **layout: str) -> Any:
    return ipywidgets.VBox(children, layout=ipywidgets.Layout(**layout))


def _row(*children: Any) -> Any:
    return ipywidgets.HBox(children, layout=ipywidgets.Layout(flex_flow="row wrap"))
