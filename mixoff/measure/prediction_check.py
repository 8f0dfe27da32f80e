"""One reply under several settings of a cache, turn by turn. Knows chats and the latency model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mixoff.cache.prefetcher import prefetcher_of
from mixoff.chat.chat import Chat
from mixoff.errors import ConfigError
from mixoff.simulate.machine import LinkModel, Machine
from mixoff.simulate.speed import PrefetchAccuracy, predict_speed, recorded_speed
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CacheSetting:
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


def record_with_settings(
    chat: Chat, settings: Iterable[CacheSetting], message: str, *, rounds: int = 3
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
    before = CacheSetting(cache.slots_per_layer, prefetcher.experts, prefetcher.layers_ahead)
    sampling, chat.sampling = chat.sampling, replace(chat.sampling, temperature=0.0)
    try:
        _record(chat, before, message)
        return [[_record(chat, setting, message) for setting in wanted] for _ in range(rounds)]
    finally:
        chat.sampling = sampling
        _set(chat, before)
        chat.reset()


def check_predictions(
    rounds: Iterable[Sequence[Trace]],
    transfers: "pd.DataFrame | LinkModel",
    recall: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """Return how fast replies were decoded, beside what is predicted from the first setting alone.

    In each round a machine is fitted to the first recording and to the transfers; from both, all
    other settings are predicted. Numbers are medians of the rounds.

    Parameters
    ----------
    rounds
        What `record_with_settings` gave.
    transfers
        What `mixoff.measure.transfers` gave, or the link that misses come over.
    recall
        What `mixoff.measure.recall` gave, of one predictor: needed where a setting guesses.

    Returns
    -------
    pandas.DataFrame
        A row a setting: setting, how ("fitted", "other slots", "guesses"), measured_wait_ms,
        predicted_wait_ms, measured and predicted (tokens a second), error (predicted by measured,
        less 1).

    Raises
    ------
    ConfigError
        If recall isn't known of what a setting guesses, or the misses' way wasn't measured.
    """
    import pandas as pd

    rows = []
    for base, *others in rounds:
        machine = Machine.fit(base, transfers)
        for trace in (base, *others):
            told = recorded_speed(trace).iloc[0]
            setting = CacheSetting(*map(int, told[["slots", "prefetch", "layers_ahead"]]))
            guessing = _guessing(setting, recall) if setting.prefetch else None
            found = predict_speed(base, machine, slots=setting.slots, guessing=guessing).iloc[0]
            rows.append(
                {
                    "setting": str(setting),
                    "how": _how(trace is base, setting),
                    "measured_wait_ms": told["wait_ms"],
                    "predicted_wait_ms": found["wait_ms"],
                    "measured": told["tokens_per_s"],
                    "predicted": found["tokens_per_s"],
                }
            )
    table = pd.DataFrame(rows).groupby(["setting", "how"], sort=False).median().reset_index()
    return table.assign(error=table["predicted"] / table["measured"] - 1)


def _how(is_base: bool, setting: CacheSetting) -> str:
    return "fitted" if is_base else "guesses" if setting.prefetch else "other slots"


def _guessing(setting: CacheSetting, recall: "pd.DataFrame | None") -> PrefetchAccuracy:
    """Return how well a setting guesses, as it was measured, of all layers together."""
    if recall is None:
        raise ConfigError(f"{setting}: how well is guessed isn't known: give recall.")
    rows = recall[recall["guesses"] == setting.prefetch]
    shares = rows.groupby("layers_ahead")["recall"].mean()
    wanted = range(1, setting.layers_ahead + 1)
    if missing := [ahead for ahead in wanted if ahead not in shares]:
        raise ConfigError(f"{setting}: recall of {missing[0]} ahead wasn't measured.")
    return PrefetchAccuracy(setting.prefetch, tuple(float(shares[ahead]) for ahead in wanted))


def _record(chat: Chat, setting: CacheSetting, message: str) -> Trace:
    _set(chat, setting)
    chat.reset()
    assert chat.cache is not None
    with chat.cache.record() as trace:
        for _ in chat.send(message):
            pass
    return trace


def _set(chat: Chat, setting: CacheSetting) -> None:
    assert chat.cache is not None
    if chat.cache.slots_per_layer != setting.slots:
        chat.cache.resize(setting.slots)
    prefetcher = prefetcher_of(chat.model)
    prefetcher.experts, prefetcher.layers_ahead = setting.prefetch, setting.layers_ahead
