"""The seconds that a machine takes for a token's compute and an expert's copy. Knows no caches.

`Machine.fit` takes them from a recording and from measured transfers.
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

_MOST_POINTS = 2000  # of a median slope, which takes all pairs of them
_MS, _NS = 1e-3, 1e-9


@dataclass(frozen=True)
class LinkModel:
    """The time of a copy that nothing else delays.

    Parameters
    ----------
    latency_s
        Seconds of a copy of no bytes.
    bytes_per_s
        Bytes per second beyond that.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (self.latency_s >= 0 and self.bytes_per_s > 0):
            raise ConfigError(f"{self}: a latency is 0 or more, a bandwidth more than 0.")

    @classmethod
    def fit(cls, nbytes: Iterable[float], seconds: Iterable[float]) -> "LinkModel":
        """Return the link whose times have the least squared relative errors of measured ones.

        Raises
        ------
        ConfigError
            If there are fewer than two sizes, or larger ones don't take longer.
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
        """Return the seconds of a copy."""
        return self.latency_s + nbytes / self.bytes_per_s

    def pieces(self, nbytes: int) -> list[float]:
        """Return the seconds of each piece of a copy; the first has the latency."""
        sizes = [min(CHUNK, nbytes - first) for first in range(0, nbytes, CHUNK)]
        return [self.seconds(sizes[0]), *(size / self.bytes_per_s for size in sizes[1:])]


@dataclass(frozen=True)
class Machine:
    """The speed at which a machine decodes a model's tokens and copies its experts.

    Parameters
    ----------
    layer_s
        Seconds of a layer without its experts: attention, norms and gate.
    expert_s
        Seconds of one expert for one token.
    token_s
        Seconds of the rest of a token: embeddings, head, sampling.
    link
        Over which misses are copied, as measured while the model doesn't compute.
    copy_s
        Seconds of compute, not of waiting, that a copy costs: to start it, and to share the machine
        with it.
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
        """Return the machine of a recording.

        Times are medians of decoded tokens: an expert's of demands without misses, where there are
        any; a layer's from one demand's end to the next one's start. The rest of a token's compute
        is fitted by a line over its misses: `token_s` at none, and `copy_s` more for each (the
        median slope between two tokens). The slowdown is that of all recorded copies together.

        Parameters
        ----------
        trace
            A recording with two decoded tokens in a row or more.
        transfers
            What `mixoff.measure.transfers` returned: the rows of the path of the recording's
            misses, one in flight, are used. Or the link itself.

        Raises
        ------
        ConfigError
            If that path wasn't measured.
        TraceError
            If there are no two decoded tokens in a row, or misses were computed in host memory.
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
    """Return the median seconds of an expert in demands without misses, or in all if none is."""
    waited = trace.events["wait_ns"][trace.events["kind"] == DEMAND]  # [N]
    needed = np.diff(demands.first)
    each = (demands.duration_ns - waited) / np.maximum(1, needed) * _NS
    decoding = (demands.tokens == 1) & (needed > 0)
    hits = np.add.reduceat(demands.hit, demands.first[:-1], dtype=int)
    quiet = decoding & (hits == needed)
    return float(np.median(each[quiet if quiet.any() else decoding]))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the median slope between two points (Theil 1950, Sen 1968); 0 if all x are equal."""
    first, second = np.triu_indices(min(len(x), _MOST_POINTS), k=1)
    apart = x[first] != x[second]
    slopes = (y[first] - y[second])[apart] / (x[first] - x[second])[apart]
    return float(np.median(slopes)) if len(slopes) else 0.0


def _slowdown(trace: Trace, link: LinkModel) -> float:
    """Return the time of decoded tokens' recorded copies over what the link alone would take."""
    events = trace.events
    copies = events[(events["kind"] == COPY) & (events["tokens"] == 1) & (events["nbytes"] > 0)]
    if not len(copies):
        return 1.0
    alone = [link.seconds(int(nbytes)) for nbytes in copies["nbytes"]]
    return float(copies["duration_ns"].sum() * _NS / sum(alone))


def complete_tokens(trace: Trace) -> "pd.DataFrame":
    """Return the rows of `Trace.per_token` of decoded tokens that another decoded one follows.

    Only these have a token's whole time: the last row of a reply ends with its last demand.

    Raises
    ------
    TraceError
        If there is none.
    """
    steps = trace.per_token()
    decoding = steps["phase"] == "decode"
    complete = steps[decoding & decoding.shift(-1, fill_value=False)]
    if complete.empty:
        raise TraceError("a trace without two decoded tokens in a row: record a reply.")
    return complete


def link_of(trace: Trace, transfers: "pd.DataFrame") -> LinkModel:
    """Return the link over which a recording's misses were copied, fitted to measured transfers.

    Raises
    ------
    ConfigError
        If its path wasn't measured one in flight.
    """
    path = _path_of(trace)
    rows = transfers[transfers["in_flight"] == 1]
    for column, value in path.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        words = ", ".join(path.values())
        raise ConfigError(f"transfers: no rows of {words}, one in flight: measure that path, too.")
    return LinkModel.fit(rows["nbytes"], rows["ms"] * _MS)


def _path_of(trace: Trace) -> dict[str, str]:
    """Return a path's columns of a recording's misses; buffered files are in the page cache."""
    facts = trace.provenance
    if facts.get("device", "cpu") != "cpu" and facts.get("host_tier") != "none":
        method = "pinned" if facts.get("pinned_notice") is None else "pageable"
        return {"source": "host", "target": "device", "method": method}
    if facts.get("io") == "direct":
        return {"source": "disk", "method": "direct"}
    return {"source": "disk", "method": "buffered", "page_cache": "in it"}
