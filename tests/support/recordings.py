"""Recordings of caches that are played by hand: real decisions, made-up times."""

import copy
from collections.abc import Iterable
from typing import Any

from mixoff.policies.base import Policy
from mixoff.policies.registry import policy_name, policy_named
from mixoff.policies.residency import Residency
from mixoff.trace import Recorder, Trace
from mixoff.trace.events import Copy, Demand, Guess, Missed, Snapshot, Tier

MS = 1_000_000  # nanoseconds
NBYTES = 1000  # of a record in layer 0; one more in each later layer


class HandPlayed:
    """Layers' residencies, and a recorder of their decisions."""

    def __init__(
        self, *, layers: int, experts: int, slots: int, policy: str | Policy = "lru"
    ) -> None:
        self.experts, self.slots, self.policy = experts, slots, policy_named(policy)
        self.layers = [Residency(experts, slots, self.policy, layer) for layer in range(layers)]
        self.now = 0  # ns
        self.hits: list[bool] = []  # of each needed expert, in the order recorded
        self.recorder: Recorder | None = None

    def record(self) -> "HandPlayed":
        """Begin to record, at whatever is resident now."""
        self.recorder = Recorder(clock=lambda: self.now)
        self._report_all("start")
        return self

    def demand(
        self,
        layer: int,
        experts: Iterable[int],
        *,
        tokens: int = 1,
        wait_ns: int = 0,
        compute_ns: int = 0,
        tier: Tier = "disk",
    ) -> None:
        """Serve a demand: each miss is waited for, each expert computed."""
        decision = self.layers[layer].demand(experts)
        start = self.now
        self.now += compute_ns * len(decision.hits)
        arrivals = []
        for expert in decision.misses:
            arrivals.append(Missed(expert, tier, NBYTES + layer, self.now, wait_ns))
            self.copied(layer, expert, tier, self.now, wait_ns)
            self.now += wait_ns + compute_ns
        self._report(layer, tokens, start, decision, arrivals, complete=True)

    def cut(self, layer: int, experts: Iterable[int], *, left: Iterable[int]) -> None:
        """Serve a demand that is interrupted before its misses arrive, with residents left."""
        decision = self.layers[layer].demand(experts)
        self._report(layer, 1, self.now, decision, [], complete=False)
        self.layers[layer].residents = left
        self._report_state(layer, "interrupted")

    def resize(self, slots: int) -> None:
        for residency in self.layers:
            residency.resize(slots)
        self._report_all("resize")

    def copied(
        self, layer: int, expert: int, source: Tier, start: int, took: int, *, guess: bool = False
    ) -> None:
        if self.recorder:
            self.recorder.copy(
                Copy(layer, expert, source, "device", NBYTES + layer, start, took, guess)
            )

    def guessed(self, layer: int, expert: int, outcome: Any, *, took: int = 0) -> None:
        assert self.recorder
        self.recorder.guess(
            Guess(layer, expert, 1, self.now, self.now + took, NBYTES + layer, outcome)
        )

    def trace(self, **provenance: Any) -> Trace:
        """Return what was recorded."""
        assert self.recorder
        facts = {
            "num_experts": self.experts,
            "num_layers": len(self.layers),
            "record_nbytes": [NBYTES + layer for layer in range(len(self.layers))],
            "policy": policy_name(self.policy),
            "slots": self.slots,
        }
        return self.recorder.finish(provenance=facts | provenance)

    def _report(
        self, layer: int, tokens: int, start: int, decision: Any, arrivals: Any, **how: Any
    ):
        if self.recorder:
            self.hits += [True] * len(decision.hits) + [False] * len(decision.misses)
            self.recorder.demand(
                Demand(
                    layer,
                    tokens,
                    start,
                    self.now,
                    decision.hits,
                    decision.misses,
                    tuple(arrivals),
                    decision.evictions,
                    **how,
                )
            )

    def _report_all(self, reason: Any) -> None:
        for layer in range(len(self.layers)):
            self._report_state(layer, reason)

    def _report_state(self, layer: int, reason: Any) -> None:
        if self.recorder:
            residency = self.layers[layer]
            usage = copy.deepcopy(residency.usage)
            self.recorder.snapshot(
                Snapshot(layer, reason, residency.num_slots, residency.residents, usage)
            )


def traced(demands: list[list[list[int]]], experts: int) -> Trace:
    """Return the trace of a cache that holds every expert, of demands of each layer."""
    played = HandPlayed(layers=len(demands), experts=experts, slots=experts).record()
    for number in range(max(map(len, demands))):
        for layer, of_layer in enumerate(demands):
            if number < len(of_layer):
                played.demand(layer, of_layer[number])
    return played.trace()
