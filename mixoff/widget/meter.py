"""Rates and cache counts of the current reply, and of the conversation in the box.

Knows a chat's cache and its last reply's statistics; nothing of how they are shown.
"""

from time import perf_counter
from typing import TYPE_CHECKING

from mixoff.widget.gauges import Reading

if TYPE_CHECKING:
    from mixoff.cache.stats import CacheStats
    from mixoff.chat.chat import Chat
    from mixoff.chat.reply import ReplyStats

_NAN = float("nan")


class Meter:
    """Measures a chat's cache and decode rate over the current reply and the conversation."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._latest = cache_stats(chat)
        self.restart()

    def restart(self) -> None:
        """Begin to measure a new conversation."""
        self._tokens, self._seconds = 0, 0.0
        self._start = self._stats()
        self.begin()

    def begin(self) -> None:
        """Begin to measure a new reply, and to count its `pieces`."""
        self.pieces = 0
        self._first_s: float | None = None
        self._before = self._stats()
        self._last: ReplyStats | None = None

    def count(self) -> None:
        """Count a piece of text."""
        self.pieces += 1
        self._first_s = self._first_s or perf_counter()

    def end(self, last: "ReplyStats | None") -> None:
        """Add the ended reply's statistics; None for a reply that never began."""
        self._last = last
        if last is not None and last.new_tokens > 1:
            self._tokens += last.new_tokens - 1
            self._seconds += last.seconds - last.seconds_to_first_token

    def readings(self) -> list[Reading] | None:
        """Return readings of the reply and of the conversation; None without a cache."""
        now = self._stats()
        if now is None or self._before is None or self._start is None:
            return None
        total = self._tokens / self._seconds if self._seconds > 0 else _NAN
        return [
            Reading("this reply", self.rate, now - self._before, is_estimate=self._last is None),
            Reading("whole conversation", total, now - self._start),
        ]

    @property
    def rate(self) -> float:
        """Tokens per second of the reply; while it runs, pieces of text; NaN before two."""
        if self._last is not None:
            return self._last.tokens_per_second or _NAN
        if self._first_s is None or self.pieces < 2:
            return _NAN
        return (self.pieces - 1) / (perf_counter() - self._first_s)

    def _stats(self) -> "CacheStats | None":
        """Return the cache's counts now; for a closed chat the last ones."""
        self._latest = cache_stats(self._chat) or self._latest
        return self._latest


def cache_stats(chat: "Chat") -> "CacheStats | None":
    """Return the counts of a chat's cache; None without a cache."""
    cache = chat.cache
    return None if cache is None else cache.stats()
