"""What pictures of hits and misses show, as numbers. Knows sweeps; draws nothing."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mixoff.errors import ConfigError
from mixoff.policies import Policy
from mixoff.simulate import FLOOR, sweep
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


def hit_rate(sweep: "pd.DataFrame") -> "pd.DataFrame":
    """Return the hit rate of each policy and size of what `mixoff.sweep` gave, of all layers.

    Columns: policy, slots, hit_rate.
    """
    return _rates(sweep, ["policy", "slots"])


def layer_hit_rate(sweep: "pd.DataFrame", *, slots: Iterable[int] | None = None) -> "pd.DataFrame":
    """Return the hit rate of each layer, policy and some sizes of what `mixoff.sweep` gave.

    Columns: slots, policy, layer, hit_rate.

    Parameters
    ----------
    slots
        Which sizes, in this order; by default about a quarter, a half and three quarters of the
        largest.

    Raises
    ------
    ConfigError
        If one of them isn't in the sweep.
    """
    known = sorted(map(int, sweep["slots"].unique()))
    quarters = (min(known, key=lambda size: abs(size - known[-1] * n / 4)) for n in (1, 2, 3))
    wanted = [*dict.fromkeys(quarters)] if slots is None else list(slots)
    for size in wanted:
        _check_known("slots", size, known)
    rates = _rates(sweep, ["slots", "policy", "layer"])
    rank = rates["slots"].map({size: place for place, size in enumerate(wanted)})
    return rates[rank.notna()].iloc[rank.dropna().argsort(kind="stable")].reset_index(drop=True)


def recovered(
    sweep: "pd.DataFrame", slots: int, *, base: str = FLOOR, bound: str = "belady-bypass"
) -> "pd.DataFrame":
    """Return how much of what could be won each policy wins with so many slots, the best first.

    Columns: policy, hit_rate, recovered: (hit rate - base's) / (bound's - base's), of all layers
    together. It is 1 for the bound and below 0 for what is worse than the base; missing if the
    bound hits no more than the base. Neither these two nor the floor have a row.

    Parameters
    ----------
    sweep
        What `mixoff.sweep` gave, with base and bound among the policies.
    base
        The policy that wins nothing: by default slots / experts; "lru" tells what is won beyond it.
    bound
        The policy that wins all: "belady" bounds those that must admit what they fetch.

    Raises
    ------
    ConfigError
        If the sweep lacks one of these.
    """
    _check_known("slots", slots, sorted(map(int, sweep["slots"].unique())))
    of_size = _rates(sweep[sweep["slots"] == slots], ["policy"])
    for policy in (base, bound):
        _check_known("policy", policy, of_size["policy"].tolist())
    rates = of_size.set_index("policy")["hit_rate"]
    gap = rates[bound] - rates[base]
    won = (of_size["hit_rate"] - rates[base]) / (gap if gap > 0 else float("nan"))
    choices = of_size.assign(recovered=won)[~of_size["policy"].isin({base, bound, FLOOR})]
    return choices.sort_values("hit_rate", ascending=False, kind="stable").reset_index(drop=True)


def kind_hit_rate(traces: Mapping[str, Trace], *, policy: str | Policy = "lru") -> "pd.DataFrame":
    """Return what caches of each size would have hit in each recording, of all layers.

    Columns: kind ("floor" for slots / experts, the last one), slots, hit_rate.

    Parameters
    ----------
    traces
        The recording of each kind of text, such as `mixoff.record_texts` gives.

    Raises
    ------
    ConfigError
        If there is no such policy, or no recording.
    """
    import pandas as pd

    if not traces:
        raise ConfigError("traces: there is none: give one, or more.")
    swept = [sweep(trace, policy).assign(kind=kind) for kind, trace in traces.items()]
    swept.append(sweep(next(iter(traces.values())), FLOOR).assign(kind=FLOOR))
    return _rates(pd.concat(swept), ["kind", "slots"])


def _rates(sweep: "pd.DataFrame", by: list[str]) -> "pd.DataFrame":
    sums = sweep.groupby(by, sort=False)[["hits", "misses"]].sum()
    rates = sums["hits"] / (sums["hits"] + sums["misses"])
    return rates.rename("hit_rate").reset_index()


def _check_known(what: str, given: object, known: list[int] | list[str]) -> None:
    if given not in known:
        raise ConfigError(f"{what}={given!r}: the sweep has {', '.join(map(str, known))}.")
