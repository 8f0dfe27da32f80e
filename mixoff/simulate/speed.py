"""The speed at which a machine would decode with other caches. Knows bytes and seconds; no torch.

A token is computed layer by layer: the non-expert parameters, then the layer's experts, of which
residents are computed while misses are copied over one link, one after the other; guesses for later
layers are copied behind them. Left out are the spread of times, the time of a predictor, and
prefill.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.registry import policy_name, policy_named
from mixoff.simulate.link_queue import LinkQueue, QueuedCopy
from mixoff.simulate.machine import Machine, complete_tokens
from mixoff.simulate.replay import replay
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

_MS = 1e-3
_STAGING = 4  # buffers, of recordings without their number
COLUMNS = (
    "policy",
    "slots",
    "prefetch",
    "layers_ahead",
    "hit_rate",
    "compute_ms",
    "wait_ms",
    "token_ms",
    "tokens_per_s",
)


@dataclass(frozen=True)
class PrefetchAccuracy:
    """The number of guesses and their recall, as `mixoff.measure.recall` measures it.

    Parameters
    ----------
    experts
        How many are guessed for each layer ahead.
    recall
        The share of the needed experts among them, for one layer ahead, two, and so on.
    """

    experts: int
    recall: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.experts < 1 or not self.recall or not all(0 <= r <= 1 for r in self.recall):
            raise ConfigError(f"{self}: one expert or more, and shares from 0 to 1.")


def predict_speed(
    trace: Trace,
    machine: Machine,
    *,
    policies: Iterable[str | Policy] | str | Policy | None = None,
    slots: Iterable[int] | int | None = None,
    guessing: PrefetchAccuracy | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Return the speed at which a machine would decode a recording's tokens with other caches.

    Hits and misses are those of `mixoff.replay`. Guesses are drawn at random: each needed expert
    is guessed with the probability `recall`, and wrong guesses make up their number.

    Parameters
    ----------
    policies, slots
        Those of the caches; by default the recorded ones.
    guessing
        How many experts are guessed and how well; by default none are.
    seed
        Of the random guesses.

    Returns
    -------
    pandas.DataFrame
        A row for each policy and number of slots: policy, slots, prefetch (experts guessed),
        layers_ahead, hit_rate (of decoded tokens), compute_ms, wait_ms and token_ms (medians of
        decoded tokens), tokens_per_s (1000 by token_ms).

    Raises
    ------
    ConfigError
        If there is no such policy, or slots aren't 1 to the number of experts.
    TraceError
        If there are no two decoded tokens in a row.
    """
    import pandas as pd

    chosen = [policies] if policies is None or isinstance(policies, str | Policy) else policies
    sizes = [slots] if slots is None or isinstance(slots, int) else list(slots)
    rows = []
    for policy, size in product(chosen, sizes):
        settings = _settings(trace, policy, size)
        resident = settings["slots"] / trace.num_experts
        run = _Run(trace, machine, guessing, resident, random.Random(seed))
        steps = run.tokens(replay(trace, policy, size).hit)
        ahead = {"prefetch": 0, "layers_ahead": 0}
        if guessing is not None:
            ahead = {"prefetch": guessing.experts, "layers_ahead": len(guessing.recall)}
        rows.append(settings | ahead | _summary(steps.loc[complete_tokens(trace)["step"]]))
    return pd.DataFrame(rows, columns=COLUMNS)


def recorded_speed(trace: Trace) -> "pd.DataFrame":
    """Return the speed of a recording's decoded tokens: one row with `predict_speed`'s columns.

    Raises
    ------
    TraceError
        If there are no two decoded tokens in a row.
    """
    import pandas as pd

    tokens = complete_tokens(trace)
    steps = pd.DataFrame(
        {
            "hits": tokens["hits"],
            "misses": tokens["misses"],
            "compute_ms": tokens["duration_ms"] - tokens["wait_ms"],
            "wait_ms": tokens["wait_ms"],
        }
    )
    experts = int(trace.provenance.get("prefetch", 0))
    ahead = int(trace.provenance.get("layers_ahead", 1)) if experts else 0
    settings = _settings(trace, None, None) | {"prefetch": experts, "layers_ahead": ahead}
    return pd.DataFrame([settings | _summary(steps)], columns=COLUMNS)


def _settings(trace: Trace, policy: str | Policy | None, slots: int | None) -> dict[str, Any]:
    name = trace.provenance["policy"] if policy is None else policy_name(policy_named(policy))
    recorded = int(trace.states["slots"][0]) if len(trace.states) else trace.num_experts
    return {"policy": name, "slots": recorded if slots is None else slots}


def _summary(steps: "pd.DataFrame") -> dict[str, float]:
    hits, misses = steps["hits"].sum(), steps["misses"].sum()
    token_ms = float((steps["compute_ms"] + steps["wait_ms"]).median())
    return {
        "hit_rate": float(hits / (hits + misses)),
        "compute_ms": float(steps["compute_ms"].median()),
        "wait_ms": float(steps["wait_ms"].median()),
        "token_ms": token_ms,
        "tokens_per_s": 1000 / token_ms if token_ms else float("inf"),
    }


class _Run:
    """A recording's decoded tokens in simulated time."""

    def __init__(
        self,
        trace: Trace,
        machine: Machine,
        guessing: PrefetchAccuracy | None,
        resident: float,
        draw: random.Random,
    ) -> None:
        self._demands = trace.demands()
        self._layers, self._experts = trace.num_layers, trace.num_experts
        self._pieces = [
            [seconds * machine.slowdown for seconds in machine.link.pieces(nbytes)]
            for nbytes in trace.record_nbytes
        ]
        self._staging = int(trace.provenance.get("staging", _STAGING))
        self._machine, self._guessing = machine, guessing
        self._resident, self._random = resident, draw
        self._queue = LinkQueue()
        self._guesses: dict[tuple[int, int], QueuedCopy] = {}
        self._now_s = 0.0
        self._requested = 0  # copies

    def tokens(self, hit: NDArray[np.bool_]) -> "pd.DataFrame":
        """Return hits, misses, compute_ms and wait_ms of each decoded step, by its number."""
        import pandas as pd

        rows: dict[int, dict[str, float]] = {}
        for place in np.flatnonzero(self._demands.tokens == 1).tolist():
            step = int(self._demands.step[place])
            if step not in rows:
                rows[step] = dict.fromkeys(("hits", "misses", "compute_ms", "wait_ms"), 0.0)
                self._pass(rows[step], self._machine.token_s)
            self._serve(place, hit, rows[step])
            self._pass(rows[step], self._machine.layer_s)
        return pd.DataFrame.from_dict(rows, orient="index")

    def _pass(self, row: dict[str, float], seconds: float) -> None:
        self._now_s += seconds
        row["compute_ms"] += seconds / _MS

    def _serve(self, place: int, hit: NDArray[np.bool_], row: dict[str, float]) -> None:
        layer, part = int(self._demands.layer[place]), self._part(place)
        needed = self._demands.expert[part].tolist()
        missed = [expert for expert, is_hit in zip(needed, hit[part], strict=True) if not is_hit]
        self._queue.advance(self._now_s)
        requested = self._requested
        copies = self._adopt(layer, missed)
        for _ in range(len(missed) - len(copies)):
            copies.append(self._request(layer))
        self._guess(place, hit, room=self._staging - len(copies))
        self._pass(row, self._machine.expert_s * (len(needed) - len(missed)))
        for copy in copies:
            wait_s = max(0.0, self._queue.finish(copy) - self._now_s)
            self._now_s += wait_s
            row["wait_ms"] += wait_s / _MS
            self._pass(row, self._machine.expert_s)
        self._pass(row, self._machine.copy_s * (self._requested - requested))
        row["hits"] += len(needed) - len(missed)
        row["misses"] += len(missed)

    def _request(self, layer: int, *, guess: bool = False) -> QueuedCopy:
        self._requested += 1
        return self._queue.request(self._now_s, self._pieces[layer], guess=guess)

    def _adopt(self, layer: int, missed: Sequence[int]) -> list[QueuedCopy]:
        """Return the guessed copies of misses, now demanded, and drop the layer's other guesses."""
        adopted = []
        for key in [key for key in self._guesses if key[0] == layer]:
            copy = self._guesses.pop(key)
            if key[1] in missed:
                self._queue.promote(copy)
                adopted.append(copy)
            else:
                self._queue.drop(copy)
        return sorted(adopted, key=lambda copy: (copy.ended_s is None, copy.order))

    def _guess(self, place: int, hit: NDArray[np.bool_], room: int) -> None:
        """Request copies of the guesses for layers ahead, as long as staging buffers are free."""
        if self._guessing is None:
            return
        for ahead, recall in enumerate(self._guessing.recall, start=1):
            target = place + ahead
            if not self._is_ahead(place, target):
                return
            layer = int(self._demands.layer[target])
            for expert in self._guessed(target, hit, recall):
                if (layer, expert) not in self._guesses and len(self._guesses) < room:
                    self._guesses[layer, expert] = self._request(layer, guess=True)

    def _guessed(self, place: int, hit: NDArray[np.bool_], recall: float) -> Iterator[int]:
        """Yield the guesses that aren't resident: right ones that would miss, then wrong ones."""
        assert self._guessing is not None
        part = self._part(place)
        needed = self._demands.expert[part].tolist()
        needed_hits = zip(needed, hit[part], strict=True)
        right = [guess for guess in needed_hits if self._happens(recall)][: self._guessing.experts]
        yield from (expert for expert, is_hit in right if not is_hit)
        unneeded = [expert for expert in range(self._experts) if expert not in needed]
        wrong = min(len(unneeded), self._guessing.experts - len(right))
        for expert in self._random.sample(unneeded, wrong):
            if not self._happens(self._resident):
                yield expert

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def _is_ahead(self, place: int, target: int) -> bool:
        step = self._demands.step
        return target < len(step) and bool(step[target] == step[place])

    def _part(self, place: int) -> slice:
        return slice(int(self._demands.first[place]), int(self._demands.first[place + 1]))
