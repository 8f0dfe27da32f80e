"""Predicted and measured decoding speed under several cache settings. Knows chats and traces."""

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
    """The settings of a cache that can change while its model stays loaded.

    Parameters
    ----------
    slots
        Slots of each layer.
    prefetch, layers_ahead
        Experts that are guessed for a layer, 0 for none, and how many of the next layers are
        guessed.
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
    """Return recordings of one reply under each setting, ``[round][setting]``.

    Every round runs all settings, so that other load on the machine affects all of them alike.
    Decoding is greedy, so that all replies are the same. A reply before the first round warms up.
    At the end the chat's conversation is empty, and its settings are what they were.

    Raises
    ------
    ConfigError
        If the chat's model has no cache, there is no setting or round, or a setting is invalid.
    MixoffError
        If a reply is running, or the chat is closed.
    """
    listed = list(settings)
    if chat.cache is None or not listed or rounds < 1:
        raise ConfigError(
            f"settings={listed}, rounds={rounds}: give at least one setting and one round, and a "
            "chat whose model has a cache."
        )
    cache, prefetcher = chat.cache, prefetcher_of(chat.model)
    before = CacheSetting(cache.slots_per_layer, prefetcher.experts, prefetcher.layers_ahead)
    sampling, chat.sampling = chat.sampling, replace(chat.sampling, temperature=0.0)
    try:
        _record(chat, before, message)
        return [[_record(chat, setting, message) for setting in listed] for _ in range(rounds)]
    finally:
        chat.sampling = sampling
        _apply(chat, before)
        chat.reset()


def check_predictions(
    rounds: Iterable[Sequence[Trace]],
    transfers: "pd.DataFrame | LinkModel",
    recall: "pd.DataFrame | None" = None,
) -> "pd.DataFrame":
    """Return the measured speed of every setting, and the speed predicted from the first one.

    In each round a machine model is fitted to the first recording and to the transfers. It predicts
    the other settings. Numbers are medians over the rounds.

    Parameters
    ----------
    rounds
        Recordings, from `record_with_settings`.
    transfers
        Measurements from `mixoff.measure.transfers`, or a model of the link that serves misses.
    recall
        Measurements of one predictor from `mixoff.measure.recall`: needed where a setting guesses.

    Returns
    -------
    pandas.DataFrame
        A row a setting: setting, how ("fitted", "other slots", "guesses"), measured_wait_ms,
        predicted_wait_ms, measured and predicted (tokens a second), error (predicted / measured
        - 1).

    Raises
    ------
    ConfigError
        If `recall` lacks a setting's guesses, or `transfers` lacks the path that serves misses.
    """
    import pandas as pd

    rows = []
    for base, *others in rounds:
        machine = Machine.fit(base, transfers)
        for trace in (base, *others):
            measured = recorded_speed(trace).iloc[0]
            setting = CacheSetting(*map(int, measured[["slots", "prefetch", "layers_ahead"]]))
            guessing = _accuracy(setting, recall) if setting.prefetch else None
            predicted = predict_speed(base, machine, slots=setting.slots, guessing=guessing).iloc[0]
            rows.append(
                {
                    "setting": str(setting),
                    "how": _how(trace is base, setting),
                    "measured_wait_ms": measured["wait_ms"],
                    "predicted_wait_ms": predicted["wait_ms"],
                    "measured": measured["tokens_per_s"],
                    "predicted": predicted["tokens_per_s"],
                }
            )
    table = pd.DataFrame(rows).groupby(["setting", "how"], sort=False).median().reset_index()
    return table.assign(error=table["predicted"] / table["measured"] - 1)


def _how(is_base: bool, setting: CacheSetting) -> str:
    return "fitted" if is_base else "guesses" if setting.prefetch else "other slots"


def _accuracy(setting: CacheSetting, recall: "pd.DataFrame | None") -> PrefetchAccuracy:
    """Return the measured recall of a setting's guesses, a mean over layers."""
    if recall is None:
        raise ConfigError(f"{setting}: the recall of its guesses is unknown: give recall.")
    rows = recall[recall["guesses"] == setting.prefetch]
    shares = rows.groupby("layers_ahead")["recall"].mean()
    distances = range(1, setting.layers_ahead + 1)
    if missing := [ahead for ahead in distances if ahead not in shares]:
        raise ConfigError(
            f"{setting}: recall of {setting.prefetch} guesses {missing[0]} ahead wasn't measured."
        )
    return PrefetchAccuracy(setting.prefetch, tuple(float(shares[ahead]) for ahead in distances))


def _record(chat: Chat, setting: CacheSetting, message: str) -> Trace:
    _apply(chat, setting)
    chat.reset()
    assert chat.cache is not None
    with chat.cache.record() as trace:
        for _ in chat.send(message):
            pass
    return trace


def _apply(chat: Chat, setting: CacheSetting) -> None:
    assert chat.cache is not None
    if chat.cache.slots_per_layer != setting.slots:
        chat.cache.resize(setting.slots)
    prefetcher = prefetcher_of(chat.model)
    prefetcher.experts, prefetcher.layers_ahead = setting.prefetch, setting.layers_ahead
