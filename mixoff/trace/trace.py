"""A recording: its tables, and the views of them that users need. Knows no cache."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixoff.errors import TraceError
from mixoff.safe_json import quoted
from mixoff.trace import chrome, explain, file, frames, synthetic
from mixoff.trace.schema import DEMAND, EVENT, Demands, Rows, check, demands_of, state_dtype

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False, eq=False)
class Trace:
    """What a cache did: demands, hits, misses, prefetches, evictions and copies.

    It is empty until its recording ends: ``with cache.record() as trace: ...``.

    Parameters
    ----------
    events
        One row an event: `mixoff.trace.schema.EVENT`; `to_frame` returns it as a data frame.
    states
        Layers' residents and usage where a replay begins anew: at the start, at a resize, and
        after an interrupted demand: `mixoff.trace.schema.state_dtype`.
    provenance
        How it was made, plain JSON values: checkpoint, quantization, policy, slots, seed and so on.
        Add your own: ``trace.provenance["prompt"] = ...``.
    """

    events: Rows = field(default_factory=lambda: np.zeros(0, EVENT))
    states: Rows = field(default_factory=lambda: np.zeros(0, state_dtype(0)))
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Trace":
        """Return the trace in a file, whose format `mixoff.trace.file` describes.

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
        """Return a trace of synthetic tokens, whose hit rates are known beforehand.

        It is the recording of a cache that has a slot for every expert and takes no time.
        `mixoff.trace.synthetic` describes each routing and its hit rates.

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
        """Write everything into one file, whose format `mixoff.trace.file` describes.

        Raises
        ------
        TraceError
            If it is still empty, the provenance isn't plain JSON, or the file can't be written.
        """
        self.check()
        file.write(Path(path), file.Content(self.events, self.states, self.provenance))

    def check(self) -> None:
        """Refuse a trace that no recording has.

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
        """Bytes of an expert's record, for each layer."""
        sizes = self.provenance.get("record_nbytes")
        if not isinstance(sizes, list) or len(sizes) != self.num_layers:
            raise TraceError(f"provenance['record_nbytes']={sizes!r}: a size for each layer.")
        return tuple(map(int, sizes))

    @property
    def num_steps(self) -> int:
        """How many steps were recorded: a decoded token each, or a chunk of a prompt."""
        steps = self.events["step"][self.events["kind"] == DEMAND]
        return int(steps[-1]) + 1 if len(steps) else 0

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an event, in the order of `mixoff.trace.schema`; times in milliseconds.

        Columns: kind, step, phase, tokens, layer, expert, tier, target (of a copy), outcome (of a
        prefetch; "cut" for an interrupted demand; "computed" for a miss that was computed in host
        memory, which its duration includes), guess (whether a copy was one), layers_ahead (of a
        prefetch), nbytes, start_ms, duration_ms, and wait_ms, how long compute waited. Values that
        don't apply are missing.
        """
        return frames.event_frame(self.events)

    def per_token(self) -> "pd.DataFrame":
        """Return one row a step: a decoded token, or a chunk of a prompt.

        Columns: step, phase, tokens, hits, misses, hit_rate, bytes (of the missed records),
        prefetch_used, prefetch_late, prefetch_wasted (of those that began in it), computed (misses
        that were computed in host memory), computed_ms, wait_ms, start_ms, duration_ms. A step
        lasts from its first demand to that of the next one, and the last step of a reply to the
        end of its last demand.
        """
        return frames.step_frame(self.events)

    def per_layer(self) -> "pd.DataFrame":
        """Return one row a layer, with the columns of `per_token` that a layer has.

        `duration_ms` is the time of its demands, without attention.
        """
        return frames.layer_frame(self.events, self.num_layers)

    def slowest(self, n: int = 10) -> "pd.DataFrame":
        """Return the rows of `per_token` with the longest duration, the longest first."""
        return self.per_token().nlargest(n, "duration_ms")

    def explain(self, step: int) -> str:
        """Return why a token was slow, a sentence a line: its waits and misses, beside the median.

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
        """Return the experts that each layer needed in each step, as arrays."""
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
        hit, facts = self.demands().hit, self.provenance
        model = facts.get("model", facts.get("checkpoint"))
        return (
            f"Trace({f'{quoted(model)}, ' if model else ''}{self.num_steps} steps, "
            f"{self.num_layers} layers of {self.num_experts} experts"
            + (f", top {quoted(facts['top_k'])}" if facts.get("top_k") else "")
            + (f", hit rate {hit.mean():.1%})" if len(hit) else ")")
        )
