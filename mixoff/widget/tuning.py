"""Numbers of slots and of prefetched experts: the current ones, and those requested.

Knows a chat's cache and prefetcher, and looks them up each time, so that it keeps neither alive.
"""

from typing import TYPE_CHECKING

from mixoff.cache.prefetcher import Prefetcher, prefetcher_of
from mixoff.errors import MixoffError

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat


class Tuning:
    """Requested changes of a cache, which are applied while no token is computed.

    Attributes
    ----------
    num_experts
        Number of experts of a layer; 0 if the model has no cache.
    """

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._slots: int | None = None
        self._prefetch: int | None = None
        self.num_experts = 0 if chat.cache is None else chat.cache.num_experts

    @property
    def slots(self) -> int | None:
        """Number of slots of each layer now; None without a cache."""
        cache = self._chat.cache
        return None if cache is None else cache.slots_per_layer

    @property
    def prefetch(self) -> int | None:
        """Number of experts prefetched for a layer now; None without a prefetcher."""
        prefetcher = self._prefetcher()
        return None if prefetcher is None else prefetcher.experts

    def request(self, *, slots: int | None = None, prefetch: int | None = None) -> bool:
        """Request new numbers, and return whether any pending one differs from the current one."""
        if slots is not None:
            self._slots = None if slots == self.slots else slots
        if prefetch is not None:
            self._prefetch = None if prefetch == self.prefetch else prefetch
        return self.is_pending

    @property
    def is_pending(self) -> bool:
        """Whether a requested change is to be applied."""
        return self._slots is not None or self._prefetch is not None

    def discard(self) -> None:
        """Discard the requested changes."""
        self._slots = self._prefetch = None

    def apply(self) -> None:
        """Apply the requested changes, once; no token may be computed meanwhile.

        Raises
        ------
        MixoffError
            If the cache was closed.
        """
        cache, prefetcher = self._chat.cache, self._prefetcher()
        slots, prefetch = self._slots, self._prefetch
        self.discard()  # first: a change that fails isn't tried again
        if slots is not None and cache is not None:
            cache.resize(slots)
        if prefetch is not None and prefetcher is not None:
            prefetcher.experts = prefetch

    def _prefetcher(self) -> Prefetcher | None:
        if self._chat.cache is None:
            return None
        try:
            return prefetcher_of(self._chat.model)
        except MixoffError:  # a model without a prefetcher, or a closed chat
            return None
