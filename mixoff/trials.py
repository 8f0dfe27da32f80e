"""The same reply under several settings of one cache, turn by turn. Knows chats; judges nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mixoff.errors import ConfigError
from mixoff.generate import Chat
from mixoff.predictors import prefetcher_of
from mixoff.trace import Trace


@dataclass(frozen=True)
class Setting:
    """What can be changed of a cache while its model stays loaded.

    Parameters
    ----------
    slots
        How many experts of a layer are resident.
    prefetch, layers_ahead
        How many experts are guessed, 0 for none, and for how many of the next layers.
    """

    slots: int
    prefetch: int = 0
    layers_ahead: int = 1

    def __str__(self) -> str:
        if not self.prefetch:
            return f"{self.slots} slots"
        return f"{self.slots} slots, {self.prefetch} guessed {self.layers_ahead} ahead"


def record_settings(
    chat: Chat, settings: Iterable[Setting], message: str, *, rounds: int = 3
) -> list[list[Trace]]:
    """Return recordings of one and the same reply, ``[round][setting]``.

    Settings take turns, so that what else the machine does touches all alike. Tokens are the most
    probable ones, so that replies are the same ones however fast they come. The chat forgets its
    turns, and has its settings back in the end. A reply before the first round warms up.

    Raises
    ------
    ConfigError
        If the chat's model has no cache, there is no setting, or one can't be met.
    MixoffError
        If a reply runs, or the chat was closed.
    """
    wanted = list(settings)
    if chat.cache is None or not wanted or rounds < 1:
        raise ConfigError(f"settings={wanted}, rounds={rounds}: a cache's, and 1 or more of each.")
    cache, prefetcher = chat.cache, prefetcher_of(chat.model)
    before = Setting(cache.slots_per_layer, prefetcher.experts, prefetcher.layers_ahead)
    sampling, chat.sampling = chat.sampling, replace(chat.sampling, temperature=0.0)
    try:
        _record(chat, before, message)
        return [[_record(chat, setting, message) for setting in wanted] for _ in range(rounds)]
    finally:
        chat.sampling = sampling
        _set(chat, before)
        chat.reset()


def _record(chat: Chat, setting: Setting, message: str) -> Trace:
    _set(chat, setting)
    chat.reset()
    assert chat.cache is not None
    with chat.cache.record() as trace:
        for _ in chat.send(message):
            pass
    return trace


def _set(chat: Chat, setting: Setting) -> None:
    assert chat.cache is not None
    if chat.cache.slots_per_layer != setting.slots:
        chat.cache.resize(setting.slots)
    prefetcher = prefetcher_of(chat.model)
    prefetcher.experts, prefetcher.layers_ahead = setting.prefetch, setting.layers_ahead
