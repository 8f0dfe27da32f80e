"""What a recording is: its tables, and everything a person asks of them."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixoff.errors import TraceError
from mixoff.trace import chrome, explain, file, frames, synthetic
from mixoff.trace.schema import DEMAND, EVENT, Demands, Rows, check, demands_of, state_dtype

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False, eq=False)
class Trace:
    """What a cache was asked and did: demands, hits, misses, prefetches, evictions and copies.

    It is empty until its recording ends: ``with cache.record() as trace: ...``.

    Parameters
    ----------
    events
        One row an event: `mixoff.trace.schema.EVENT`; `to_frame` gives it for reading.
    states
        Layers' residents and usage where a replay begins anew: at the start, at a resize, and
        after a demand that was cut: `mixoff.trace.schema.state_dtype`.
    provenance
        Where it comes from, plain JSON values: model, quantization, policy, slots, seed and so on.
        Add what you know: ``trace.provenance["prompt"] = ...``.
    """

    events: Rows = field(default_factory=lambda: np.zeros(0, EVENT))
    states: Rows = field(default_factory=lambda: np.zeros(0, state_dtype(0)))
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Trace":
        """Return the trace in a file, whose format `mixoff.trace.file` tells.

        Raises
        ------
        TraceError
            If it is missing, damaged, no trace, or of a newer version.
        """
        trace = cls(*file.read(Path(path)))
        try:
            trace.check()
        except TraceError as error:
            raise TraceError(f"{path}: damaged: {error}") from error
        return trace

    @classmethod
    def synthetic(
        cls,
        routing: synthetic.Routing,
        *,
        tokens: int,
        layers: int,
        experts: int,
        top_k: int,
        seed: int,
        record_nbytes: int = 1,
    ) -> "Trace":
        """Return a trace of made-up tokens, whose hit rates are known beforehand.

        It is as a cache would have recorded it that has a slot for every expert and takes no time.
        `mixoff.trace.synthetic` tells what each routing is, and the hit rates.

        Raises
        ------
        ConfigError
            If there is no such routing, or a number is out of range.
        """
        made = synthetic.make(
            routing, tokens=tokens, layers=layers, experts=experts, top_k=top_k, seed=seed
        )
        provenance = made.provenance | {"record_nbytes": [record_nbytes] * layers}
        return cls(made.events, made.states, provenance)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into one file, whose format `mixoff.trace.file` tells.

        Raises
        ------
        TraceError
            If there is nothing to save yet, the provenance isn't plain JSON, or the file can't be
            written.
        """
        self.check()
        file.write(Path(path), file.Content(self.events, self.states, self.provenance))

    def check(self) -> None:
        """Refuse a trace that no recording makes.

        Raises
        ------
        TraceError
            Naming the first rule that is broken.
        """
        sizes = {"num_layers": self.num_layers, "num_experts": self.num_experts}
        check(self.events, self.states, **sizes)
        _ = self.record_nbytes

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return self._number("num_layers")

    @property
    def num_experts(self) -> int:
        """How many experts a layer has."""
        return self._number("num_experts")

    @property
    def record_nbytes(self) -> tuple[int, ...]:
        """How large an expert's record is, for each layer."""
        sizes = self.provenance.get("record_nbytes")
        if not isinstance(sizes, list) or len(sizes) != self.num_layers:
            raise TraceError(f"provenance['record_nbytes']={sizes!r}: a size for each layer.")
        return tuple(map(int, sizes))

    @property
    def num_steps(self) -> int:
        """How many steps were recorded: a decoded token each, or a piece of a prompt."""
        steps = self.events["step"][self.events["kind"] == DEMAND]
        return int(steps[-1]) + 1 if len(steps) else 0

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an event, in the order of `mixoff.trace.schema`; times in milliseconds.

        Columns: kind, step, phase, tokens, layer, expert, tier, target (of a copy), outcome (of a
        prefetch; "cut" for a demand that was ended early; "computed" for a miss that was computed
        where it lay, which its duration includes), guess (whether a copy was one),
        layers_ahead (of a prefetch), nbytes, start_ms, duration_ms, and wait_ms, which compute
        waited. What doesn't apply is missing.
        """
        return frames.event_frame(self.events)

    def per_token(self) -> "pd.DataFrame":
        """Return one row a step: a decoded token, or a piece of a prompt.

        Columns: step, phase, tokens, hits, misses, hit_rate, bytes (of the missed records),
        prefetch_used, prefetch_late, prefetch_wasted (of those that began in it), computed
        (misses, where they lay in host memory), computed_ms, wait_ms, start_ms, duration_ms. A
        step lasts from its first demand to that of the next one, and the last step of a reply to
        the end of its last demand.
        """
        return frames.step_frame(self.events)

    def per_layer(self) -> "pd.DataFrame":
        """Return one row a layer, with the columns of `per_token` that make sense of one.

        `duration_ms` is how long its demands took, without attention.
        """
        return frames.layer_frame(self.events, self.num_layers)

    def slowest(self, n: int = 10) -> "pd.DataFrame":
        """Return the rows of `per_token` with the longest duration, the longest first."""
        return self.per_token().nlargest(n, "duration_ms")

    def explain(self, step: int) -> str:
        """Return why a token was slow, a sentence a line: what it waited for, and what is usual.

        Raises
        ------
        TraceError
            If there is no such step.
        """
        if not 0 <= step < self.num_steps:
            raise TraceError(f"step={step}: the trace has {self.num_steps} steps, from 0.")
        return explain.explain(self.events, step)

    def to_chrome(self, path: str | PathLike[str]) -> None:
        """Write Chrome's trace events, which https://ui.perfetto.dev and chrome://tracing open.

        Raises
        ------
        TraceError
            If the file can't be written.
        """
        chrome.write(Path(path), self.events, self.provenance)

    def demands(self) -> Demands:
        """Return what each layer needed in each step, as arrays."""
        return demands_of(self.events)

    def _number(self, name: str) -> int:
        number = self.provenance.get(name)
        if not isinstance(number, int) or number < 1:
            empty = "it is empty until its recording ends. " if not self.provenance else ""
            raise TraceError(
                f"a trace whose provenance says {name}={number!r}: {empty}Give a whole number."
            )
        return number

    def __repr__(self) -> str:
        if not len(self.events):
            return "Trace(empty)"
        return (
            f"Trace({self.num_steps} steps, {self.num_layers} layers of {self.num_experts} "
            f"experts, {len(self.events)} events)"
        )
