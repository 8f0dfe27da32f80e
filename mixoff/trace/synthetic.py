"""Synthetic routings with known hit rates. Knows experts and chance; nothing of models.

Hit rates are those of a layer with E experts, of which a token needs k, and s slots:

* ``uniform``: k experts, all sets of them equally likely. Routing has no memory, so LRU and any
  other policy that doesn't use future demands hits s / E.
* ``zipf``: k experts without repetition, the one of rank r (expert r - 1) with weight 1 / r. For
  k = 1 the s most popular experts get H(s) / H(E) of the demands, H(n) = 1 + 1/2 + ... + 1/n: the
  hit rate of a static cache of them, and the highest without future demands in the long run.
* ``sticky``: each expert is needed by the next token with probability 1/2, and the rest are drawn
  from those that weren't needed. LRU with s = k hits 1/2. Needs E >= 2 k.
* ``cyclic``: the experts in a cycle, k at a time. Where E is a multiple of k and s <= E - k, LRU
  hits none after the start; for k = 1 MIN, which must admit, hits (s - 1) / (E - 1).
* ``constant``: always the same k experts. Every policy that must admit misses at most k times if
  s >= k.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mixoff._version import __version__
from mixoff.errors import ConfigError
from mixoff.policies.recency import LRU
from mixoff.policies.residency import Residency
from mixoff.trace.schema import DEMAND, EVENT, HIT, NOTHING, START, TIERS, Rows, state_dtype

Routing = Literal["uniform", "zipf", "sticky", "cyclic", "constant"]

_STAYS = 0.5  # probability that an expert is needed again, in "sticky"


class Made(NamedTuple):
    """A trace's tables and provenance."""

    events: Rows
    states: Rows
    provenance: dict[str, Any]


def make(
    routing: Routing, *, tokens: int, layers: int, experts: int, top_k: int, seed: int
) -> Made:
    """Return a trace's tables and provenance.

    Raises
    ------
    ConfigError
        If there is no such routing, or a number is out of range.
    """
    _refuse_wrong(routing, tokens=tokens, layers=layers, experts=experts, top_k=top_k)
    chance = np.random.default_rng(seed)
    shape = (tokens, layers, experts, top_k)
    chosen = np.sort(_ROUTINGS[routing](chance, *shape), axis=-1)  # [tokens, layers, top_k]
    provenance = {
        "model": f"synthetic: {routing}",
        "mixoff": __version__,
        "seed": seed,
        "num_layers": layers,
        "num_experts": experts,
        "top_k": top_k,
        "policy": "lru",
        "slots": experts,
    }
    return Made(_events(chosen), _states(layers, experts), provenance)


def _refuse_wrong(routing: str, *, tokens: int, layers: int, experts: int, top_k: int) -> None:
    if routing not in get_args(Routing):
        raise ConfigError(f"routing={routing!r}: give one of {', '.join(get_args(Routing))}.")
    for name, number in (("tokens", tokens), ("layers", layers), ("experts", experts)):
        if number < 1:
            raise ConfigError(f"{name}={number}: give 1 or more.")
    most = experts // 2 if routing == "sticky" else experts
    if not 1 <= top_k <= most:
        raise ConfigError(f"top_k={top_k}: {experts} experts and {routing!r} allow 1 to {most}.")


def _uniform(chance: Generator, tokens: int, layers: int, experts: int, top_k: int) -> Any:
    return chance.random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k]


def _zipf(chance: Generator, tokens: int, layers: int, experts: int, top_k: int) -> Any:
    # The highest k of log weight + Gumbel noise are k draws without repetition.
    noise = chance.gumbel(size=(tokens, layers, experts))
    return (np.log(np.arange(1, experts + 1)) - noise).argsort(axis=-1)[..., :top_k]


def _sticky(chance: Generator, tokens: int, layers: int, experts: int, top_k: int) -> Any:
    rank = chance.random((tokens, layers, experts))  # the lowest are needed
    chosen = np.empty((tokens, layers, top_k), np.int64)
    chosen[0] = rank[0].argsort(axis=-1)[:, :top_k]
    stays = chance.random((tokens, layers, top_k)) < _STAYS
    for token in range(1, tokens):
        order = np.where(stays[token], -1.0, 2.0)  # before or after all ranks, which are 0 to 1
        np.put_along_axis(rank[token], chosen[token - 1], order, axis=-1)
        chosen[token] = rank[token].argsort(axis=-1)[:, :top_k]
    return chosen


def _cyclic(chance: Generator, tokens: int, layers: int, experts: int, top_k: int) -> Any:
    expert = np.arange(tokens * top_k).reshape(tokens, 1, top_k) % experts
    return np.broadcast_to(expert, (tokens, layers, top_k))


def _constant(chance: Generator, tokens: int, layers: int, experts: int, top_k: int) -> Any:
    return np.broadcast_to(_uniform(chance, 1, layers, experts, top_k), (tokens, layers, top_k))


_ROUTINGS: dict[str, Callable[[Generator, int, int, int, int], Any]] = {
    "uniform": _uniform,
    "zipf": _zipf,
    "sticky": _sticky,
    "cyclic": _cyclic,
    "constant": _constant,
}


def _events(chosen: NDArray[np.int64]) -> Rows:
    """Return events of demands that all hit."""
    tokens, layers, top_k = chosen.shape
    events = np.zeros((tokens, layers, 1 + top_k), EVENT)  # a demand, and its hits
    events["kind"] = HIT
    events["kind"][..., 0] = DEMAND
    events["step"] = np.arange(tokens)[:, None, None]
    events["tokens"] = 1
    events["layer"] = np.arange(layers)[:, None]
    events["expert"][..., 0] = NOTHING
    events["expert"][..., 1:] = chosen
    events["tier"] = TIERS.index("device")
    for name in ("target", "outcome"):
        events[name] = NOTHING
    events["tier"][..., 0] = NOTHING
    return events.reshape(-1)


def _states(layers: int, experts: int) -> Rows:
    """Return states of layers of which every expert has a slot."""
    usage = Residency(experts, experts, LRU()).usage
    states = np.zeros(layers, state_dtype(experts))
    states["layer"] = np.arange(layers)
    states["reason"] = START
    states["slots"] = experts
    states["resident"] = True
    states["last_used"] = usage.last_used
    states["entered"] = usage.entered
    return states
