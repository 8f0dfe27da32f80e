"""Plots of experts' use, of its balance, and of its divergence between texts. Knows no caches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mixoff.errors import ConfigError, TraceError
from mixoff.plots.style import BLUE, GUIDE, INK, axes_on_paper, colour_bar, on_paper, rule
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

Of = Literal["demands", "tokens"]


def usage_table(trace: Trace, *, of: Of = "demands") -> "pd.DataFrame":
    """Return the number of demands that needed each expert.

    Columns: layer, expert, needed (that number), share of the layer's demands. With even use the
    share is k / E, for k experts a demand.

    Parameters
    ----------
    of
        "demands" counts all steps, a chunk of a prompt as one; "tokens" only steps of one token,
        in which the share of demands is that of tokens. (A recording doesn't have the choices of
        each token of a prompt.)

    Raises
    ------
    ConfigError
        If `of` is neither.
    TraceError
        If there are no such steps.
    """
    import pandas as pd

    needed, demands = _counts(trace, of)
    index = pd.MultiIndex.from_product(
        [range(len(needed)), range(needed.shape[1])], names=["layer", "expert"]
    )
    share = needed / demands[:, None]
    columns = {"needed": needed.ravel(), "share": share.ravel()}
    return pd.DataFrame(columns, index=index).reset_index()


@on_paper
def usage(trace: Trace, *, of: Of = "demands", ax: Axes | None = None) -> Axes:
    """Return the share of demands that needed each expert, a cell each: a row a layer.

    `mixoff.plots.usage_table` describes `of`.

    Raises
    ------
    ConfigError
        If `of` is neither.
    TraceError
        If there are no such steps.
    """
    table = usage_table(trace, of=of)
    shares = table.pivot(index="layer", columns="expert", values="share")
    axes = axes_on_paper(ax, 6.0, 4.2)
    drawn = axes.imshow(shares, vmin=0, aspect="auto", interpolation="nearest")
    axes.set(xlabel="expert", ylabel="layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
    colour_bar(axes, drawn, f"share of {of} that need it", PercentFormatter(1.0, decimals=0))
    return axes


def balance_table(trace: Trace, *, of: Of = "demands") -> "pd.DataFrame":
    """Return the balance of each layer's use of its experts.

    Columns: layer, busiest (the most needed expert, of several the first), effective_experts (2 to
    the entropy of use in bits: the number of evenly used experts of the same entropy), load: the
    demands of the busiest expert over the mean of all. It is 1 if use is even, and E / k at most.

    Parameters
    ----------
    of
        As in `usage`.

    Raises
    ------
    ConfigError
        If `of` is neither.
    TraceError
        If there are no such steps.
    """
    import pandas as pd

    needed, _ = _counts(trace, of)
    return pd.DataFrame(
        {
            "layer": np.arange(len(needed)),
            "busiest": needed.argmax(axis=1),
            "effective_experts": 2 ** _entropy(_distribution(needed)),
            "load": needed.max(axis=1) / needed.mean(axis=1),
        }
    )


@on_paper
def balance(trace: Trace, *, of: Of = "demands", ax: Axes | None = None) -> Axes:
    """Return the demands of each layer's busiest expert over the mean, a bar each.

    The dotted line is even use. `mixoff.plots.balance_table` has the definitions.

    Raises
    ------
    ConfigError
        If `of` is neither.
    TraceError
        If there are no such steps.
    """
    table = balance_table(trace, of=of)
    axes = axes_on_paper(ax, 6.0, 3.4)
    axes.bar(table["layer"], table["load"], color=BLUE)
    axes.axhline(1, color=INK, linestyle=":", gid=GUIDE)
    axes.set(xlabel="layer", ylabel="busiest expert / mean", xlim=(-0.6, len(table) - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    rule(axes, "y")
    return axes


def usage_divergence_table(traces: Mapping[str, Trace]) -> "pd.DataFrame":
    """Return the divergence of the use of experts between each pair of recordings.

    Columns: one, other, bits: the Jensen-Shannon divergence of the shares of demands, the mean over
    layers. It is 0 if use is equal and 1 if no expert is needed in both (Lin 1991, "Divergence
    measures based on the Shannon entropy", with equal weights). A recording is paired with itself
    by its first and second half: two passages of the same kind, which are shorter and differ more
    by chance. Two recordings differ if their divergence is well above that of each with itself.

    Raises
    ------
    ConfigError
        If there are no recordings, or their models differ in layers or experts.
    TraceError
        If one has fewer than two steps.
    """
    import pandas as pd

    shapes = {(trace.num_layers, trace.num_experts) for trace in traces.values()}
    if len(shapes) != 1:
        raise ConfigError(
            f"recordings of {sorted(shapes)} layers and experts: give some of one model."
        )
    halves = {name: _halves(trace) for name, trace in traces.items()}  # [2, L, E]
    rows = []
    for row, first in halves.items():
        for column, second in halves.items():
            pair = first if row == column else np.stack([first.sum(axis=0), second.sum(axis=0)])
            rows.append((row, column, _jensen_shannon(pair)))
    return pd.DataFrame(rows, columns=["one", "other", "bits"])


@on_paper
def usage_divergence(traces: Mapping[str, Trace], ax: Axes | None = None) -> Axes:
    """Return the divergence of the use of experts between each pair of recordings, a cell each.

    On the diagonal are two halves of a recording. `mixoff.plots.usage_divergence_table` has the
    definition.

    Raises
    ------
    ConfigError
        If there are no recordings, or their models differ in layers or experts.
    TraceError
        If one has fewer than two steps.
    """
    table = usage_divergence_table(traces)
    names = list(traces)
    bits = table["bits"].to_numpy().reshape(len(names), len(names))
    axes = axes_on_paper(ax, 1.6 + 1.0 * max(4, len(names)), 1.0 + 0.8 * max(4, len(names)))
    drawn = axes.imshow(bits, vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(bits):
        ink = "black" if value > bits.max() / 2 else "white"
        axes.text(column, row, f"{value:.2f}", color=ink, ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour_bar(axes, drawn, "divergence, bits")
    return axes


def _counts(trace: Trace, of: Of) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the demands that needed each expert, [L, E], and all demands of a layer, [L]."""
    if of not in get_args(Of):
        raise ConfigError(f"of={of!r}: give one of {', '.join(get_args(Of))}.")
    demands = trace.demands()
    chosen = demands.tokens == 1 if of == "tokens" else np.ones(len(demands), bool)
    counts = np.bincount(demands.layer[chosen], minlength=trace.num_layers)
    if not counts.all():
        raise TraceError(f"of={of!r}: not every layer had such a demand: record more.")
    return _count(trace, chosen), counts


def _halves(trace: Trace) -> NDArray[np.int64]:
    """Return the demands that needed each expert, in the first and second half, [2, L, E]."""
    if trace.num_steps < 2:
        raise TraceError(f"a recording of {trace.num_steps} steps: record 2 or more.")
    second = trace.demands().step >= trace.num_steps // 2
    return np.stack([_count(trace, ~second), _count(trace, second)])


def _count(trace: Trace, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    demands = trace.demands()
    sizes = np.diff(demands.first)
    cell = np.repeat(demands.layer, sizes) * trace.num_experts + demands.expert
    cells = trace.num_layers * trace.num_experts
    counts = np.bincount(cell[np.repeat(chosen, sizes)], minlength=cells)
    return counts.reshape(trace.num_layers, trace.num_experts)


def _distribution(needed: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = needed / needed.sum(axis=-1, keepdims=True)  # [L, E]
    return shares


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy in bits [L] of distributions [L, E]."""
    safe = np.where(shares > 0, shares, 1.0)
    entropy: NDArray[np.float64] = -(safe * np.log2(safe)).sum(axis=-1)
    return entropy


def _jensen_shannon(needed: NDArray[np.int64]) -> float:
    """Return the divergence in bits of two uses [2, L, E], the mean over layers."""
    shares = _distribution(needed)
    return float((_entropy(shares.mean(axis=0)) - _entropy(shares).mean(axis=0)).mean())
