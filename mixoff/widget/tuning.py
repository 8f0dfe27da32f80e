"""How many experts are kept and guessed: what was asked for, and what is so.

Knows a chat's cache and prefetcher, and looks them up each time: it keeps neither alive.
"""

from typing import TYPE_CHECKING

from mixoff.cache.prefetcher import Prefetcher, prefetcher_of
from mixoff.errors import MixoffError

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat


class Tuning:
    """Wishes for a cache that are fulfilled when no token is being computed.

    Attributes
    ----------
    num_experts
        How many experts a layer has; 0 if the model has no cache.
    """

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._slots: int | None = None
        self._prefetch: int | None = None
        self.num_experts = 0 if chat.cache is None else chat.cache.num_experts

    @property
    def slots(self) -> int | None:
        """How many experts of a layer are resident now; None without a cache."""
        cache = self._chat.cache
        return None if cache is None else cache.slots_per_layer

    @property
    def prefetch(self) -> int | None:
        """How many experts are guessed for a layer now; None without a prefetcher."""
        prefetcher = self._prefetcher()
        return None if prefetcher is None else prefetcher.experts

    def ask(self, *, slots: int | None = None, prefetch: int | None = None) -> bool:
        """Remember what is wished for in place of what is, and return whether that differs."""
        if slots is not None:
            self._slots = None if slots == self.slots else slots
        if prefetch is not None:
            self._prefetch = None if prefetch == self.prefetch else prefetch
        return self.is_asked

    @property
    def is_asked(self) -> bool:
        """Whether a wish waits to be fulfilled."""
        return self._slots is not None or self._prefetch is not None

    def drop(self) -> None:
        """Forget what was wished for."""
        self._slots = self._prefetch = None

    def apply(self) -> None:
        """Fulfil the wishes, or forget them; no token may be computed meanwhile.

        Raises
        ------
        MixoffError
            If the cache was closed.
        """
        cache, prefetcher = self._chat.cache, self._prefetcher()
        slots, prefetch = self._slots, self._prefetch
        self.drop()
        if slots is not None and cache is not None:
            cache.resize(slots)
        if prefetch is not None and prefetcher is not None:
            prefetcher.experts = prefetch

    def _prefetcher(self) -> Prefetcher | None:
        if self._chat.cache is None:
            return None
        try:
            return prefetcher_of(self._chat.model)
        except MixoffError:  # a model without one, or a chat that was closed
            return None
