"""What a machine takes for a token's work and for an expert's way. Knows seconds; no caches.

Nothing here is made up: `Machine.fit` has its numbers from a recording and from measured transfers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixoff.errors import ConfigError, TraceError
from mixoff.trace import Trace
from mixoff.trace.schema import COPY, DEMAND, Demands
from mixoff.units import CHUNK

if TYPE_CHECKING:
    import pandas as pd

# N demands

_MOST_POINTS = 2000  # that a slope is looked for between: all pairs are
_MS, _NS = 1e-3, 1e-9


@dataclass(frozen=True)
class LinkModel:
    """What a copy takes that nothing else delays.

    Parameters
    ----------
    latency_s
        Seconds of a copy of no bytes.
    bytes_per_s
        Bytes a second beyond that.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and self.bytes_per_s > 0):
            raise ConfigError(f"{self}: a latency is 0 or more, a bandwidth more than 0.")

    @classmethod
    def fit(cls, nbytes: Iterable[float], seconds: Iterable[float]) -> "LinkModel":
        """Return the link whose times differ least from measured ones, relative to each.

        Raises
        ------
        ConfigError
            If there aren't two sizes, or larger ones don't take longer.
        """
        size, took = np.asarray([*nbytes], float), np.asarray([*seconds], float)
        if len(np.unique(size)) < 2:
            raise ConfigError(f"nbytes={size.tolist()}: a link is fitted to two sizes or more.")
        parts = np.stack([1 / took, size / took], axis=1)  # by latency and seconds a byte: 1
        latency, per_byte = np.linalg.lstsq(parts, np.ones(len(took)), rcond=None)[0]
        if latency < 0:
            latency, per_byte = 0.0, parts[:, 1].sum() / (parts[:, 1] ** 2).sum()
        if per_byte <= 0:
            raise ConfigError("larger records didn't take longer: measure larger ones, too.")
        return cls(float(latency), float(1 / per_byte))

    def seconds(self, nbytes: int) -> float:
        """Return what a copy takes."""
        return self.latency_s + nbytes / self.bytes_per_s

    def pieces(self, nbytes: int) -> list[float]:
        """Return what each piece of a copy takes; the first one has the latency."""
        sizes = [min(CHUNK, nbytes - first) for first in range(0, nbytes, CHUNK)]
        return [self.seconds(sizes[0]), *(size / self.bytes_per_s for size in sizes[1:])]


@dataclass(frozen=True)
class Machine:
    """How fast a machine decodes a model's tokens and moves its experts.

    Parameters
    ----------
    layer_s
        Seconds of a layer without its experts: attention, norms and gate.
    expert_s
        Seconds of one expert for one token.
    token_s
        Seconds that a token takes besides: embeddings, head, sampling.
    link
        What misses come over, as it is when nobody computes.
    copy_s
        Seconds of compute, not of waiting, that a copy costs: for asking, and for what it takes
        from compute meanwhile.
    slowdown
        How many times as long a copy takes while the model computes.
    """

    layer_s: float
    expert_s: float
    token_s: float
    link: LinkModel
    copy_s: float = 0.0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        seconds = (self.layer_s, self.expert_s, self.token_s, self.copy_s)
        if not (min(seconds) >= 0 and self.slowdown > 0):
            raise ConfigError(f"{self}: seconds are 0 or more, a slowdown more than 0.")

    @classmethod
    def fit(cls, trace: Trace, transfers: "pd.DataFrame | LinkModel") -> "Machine":
        """Return the machine that a recording was made on.

        Times are medians of decoded tokens: an expert's of demands without misses, where there are
        any; a layer's from one demand's end to the next one's start. What else a token takes
        without waiting is a line over its misses: `token_s` at none, and `copy_s` more for each
        (the median slope between two tokens). The slowdown is that of all recorded copies together.

        Parameters
        ----------
        trace
            A recording with two decoded tokens in a row or more.
        transfers
            What `mixoff.measure.transfers` gave, of which the way counts that misses of the
            recording took, one in flight; or the link itself.

        Raises
        ------
        ConfigError
            If that way wasn't measured.
        TraceError
            If there are no two decoded tokens in a row, or misses were computed where they lay.
        """
        if trace.demands().computed.any():
            raise TraceError(
                "misses of this recording were computed in host memory, and a machine is fitted to "
                "fetched ones: record with miss='fetch'."
            )
        link = transfers if isinstance(transfers, LinkModel) else link_of(trace, transfers)
        demands, tokens = trace.demands(), complete_tokens(trace)
        expert_s = _expert_seconds(trace, demands)
        ends = demands.start_ns + demands.duration_ns
        inside = (demands.tokens[1:] == 1) & (np.diff(demands.step) == 0)
        gaps = (demands.start_ns[1:] - ends[:-1])[inside]
        layer_s = float(np.median(gaps)) * _NS if len(gaps) else 0.0
        missed = tokens["misses"].to_numpy(float)
        computed = (tokens["duration_ms"] - tokens["wait_ms"]).to_numpy() * _MS
        known = (tokens["hits"].to_numpy() + missed) * expert_s + trace.num_layers * layer_s
        copy_s = max(0.0, _slope(missed, computed - known))
        token_s = float(np.median(computed - known - missed * copy_s))
        return cls(layer_s, expert_s, max(0.0, token_s), link, copy_s, _slowdown(trace, link))


def _expert_seconds(trace: Trace, demands: Demands) -> float:
    """Return what an expert takes in the median demand without misses, or of all if none is."""
    waited = trace.events["wait_ns"][trace.events["kind"] == DEMAND]  # [N]
    needed = np.diff(demands.first)
    each = (demands.duration_ns - waited) / np.maximum(1, needed) * _NS
    decoding = (demands.tokens == 1) & (needed > 0)
    hits = np.add.reduceat(demands.hit, demands.first[:-1], dtype=int)
    quiet = decoding & (hits == needed)
    return float(np.median(each[quiet if quiet.any() else decoding]))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the median slope between two points (Theil 1950, Sen 1968); 0 if x is all the same."""
    one, other = np.triu_indices(min(len(x), _MOST_POINTS), k=1)
    apart = x[one] != x[other]
    slopes = (y[one] - y[other])[apart] / (x[one] - x[other])[apart]
    return float(np.median(slopes)) if len(slopes) else 0.0


def _slowdown(trace: Trace, link: LinkModel) -> float:
    """Return by how much recorded copies of decoded tokens took longer than the link tells."""
    events = trace.events
    copies = events[(events["kind"] == COPY) & (events["tokens"] == 1) & (events["nbytes"] > 0)]
    if not len(copies):
        return 1.0
    alone = [link.seconds(int(nbytes)) for nbytes in copies["nbytes"]]
    return float(copies["duration_ns"].sum() * _NS / sum(alone))


def complete_tokens(trace: Trace) -> "pd.DataFrame":
    """Return the rows of `Trace.per_token` of decoded tokens that another one follows.

    Only theirs is a token's whole time: the last one of a reply ends with its last demand.

    Raises
    ------
    TraceError
        If there is none.
    """
    steps = trace.per_token()
    decoding = steps["phase"] == "decode"
    found = steps[decoding & decoding.shift(-1, fill_value=False)]
    if found.empty:
        raise TraceError("a trace without two decoded tokens in a row: record a reply.")
    return found


def link_of(trace: Trace, transfers: "pd.DataFrame") -> LinkModel:
    """Return the link that a recording's misses came over, fitted to what was measured of it.

    Raises
    ------
    ConfigError
        If that way wasn't measured one in flight.
    """
    way = _way_of(trace)
    rows = transfers[transfers["in_flight"] == 1]
    for column, value in way.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        words = ", ".join(way.values())
        raise ConfigError(f"transfers: nothing of {words}, one in flight: measure that way, too.")
    return LinkModel.fit(rows["nbytes"], rows["ms"] * _MS)


def _way_of(trace: Trace) -> dict[str, str]:
    """Return what the columns of a recording's way hold; buffered files are in the page cache."""
    told = trace.provenance
    if told.get("device", "cpu") != "cpu" and told.get("host_tier") != "none":
        method = "pinned" if told.get("pinned_notice") is None else "pageable"
        return {"source": "host", "target": "device", "method": method}
    if told.get("io") == "direct":
        return {"source": "disk", "method": "direct"}
    return {"source": "disk", "method": "buffered", "page_cache": "in it"}
