"""Updates of a chat box's widgets from its chat. Knows both; changes nothing but widgets."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixoff.widget.controls import Controls
from mixoff.widget.gauges import gauges_html
from mixoff.widget.messages import live_html, log_html, status_html
from mixoff.widget.meter import Meter
from mixoff.widget.tuning import Tuning

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat
    from mixoff.chat.reply import ReplyStats

_ENDINGS = {
    "stop": "Done",
    "length": "Cut at the longest reply or at the end of the context",
    "stopped": "Stopped",
}


class Painter:
    """Writes into the widgets of a box; its callers exclude each other."""

    def __init__(self, chat: "Chat", controls: Controls, meter: Meter, tuning: Tuning) -> None:
        self._chat, self._controls, self._meter, self._tuning = chat, controls, meter, tuning

    def log(
        self, messages: Sequence[dict[str, str]], forgotten: Sequence[dict[str, str]] = ()
    ) -> None:
        """Show finished messages, and above them the forgotten ones."""
        self._controls.log.value = log_html(messages, forgotten)

    def growing(self, text: str) -> None:
        """Show an unfinished reply."""
        self._controls.live.value = live_html(text.lstrip())

    def progress(self, notice: str) -> None:
        """Show the cache's counts, a reply's rate, and a notice."""
        self.gauges()
        rate = self._meter.rate
        speed = "" if math.isnan(rate) else f", {rate:.1f} tokens/s"
        pieces = self._meter.pieces
        text = f"Replying: about {pieces} token{'s' * (pieces != 1)}{speed}."
        self.say(f"{text} {notice}", is_final=False)

    def gauges(self) -> None:
        """Show the cache's counts."""
        if (readings := self._meter.readings()) is not None:
            self._controls.gauges.value = gauges_html(readings)

    def settings(self) -> None:
        """Show the chat's current settings; sliders of a pending request keep its values."""
        controls, tuning = self._controls, self._tuning
        controls.system.value = self._chat.system or ""
        for name, slider in controls.sampling.items():
            _move(slider, getattr(self._chat.sampling, name))
        if not tuning.is_pending:
            _move(controls.slots, tuning.slots)
            _move(controls.prefetch, tuning.prefetch)

    def say(self, text: str, *, is_final: bool = True) -> None:
        """Show a sentence below the conversation."""
        self._controls.status.value = status_html(text, is_final=is_final)


def _move(slider: Any, value: float | None) -> None:
    """Move a slider to a value in its range."""
    if value is not None and slider.min <= value <= slider.max:
        slider.value = value


def ending(last: "ReplyStats") -> str:
    """Return a sentence about a reply's end, length and rate."""
    speed = last.tokens_per_second
    rate = f", {speed:.1f} tokens/s" if speed else ""
    text = f"{_ENDINGS[last.finish]}: {last.new_tokens} tokens in {last.seconds:.1f} s{rate}."
    return f"{text} {last.notice}" if last.notice else text
