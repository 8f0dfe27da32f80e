"""What pictures of sizes, costs, guesses and speeds show, as numbers. Draws nothing."""

from typing import TYPE_CHECKING

from mixoff.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

CHANCE = "chance"


def quality(measured: "pd.DataFrame", cost: str = "loss") -> "pd.DataFrame":
    """Return size and cost of each scheme, the smallest first, and whether one is worth its bytes.

    Columns: attention and experts, their bits; nbytes; is_best, whether no scheme that is as small
    costs less; and the cost.

    Parameters
    ----------
    measured
        What `mixoff.measure_quality` gave, or any frame with the columns attention, experts, nbytes
        and the cost.
    cost
        The column that tells what a scheme costs, the lower the better.
    """
    _require(measured, ("attention", "experts", "nbytes", cost))
    table = measured.sort_values(["nbytes", cost], kind="stable").reset_index(drop=True)
    is_best = table[cost] < table[cost].cummin().shift(fill_value=float("inf"))
    return table.assign(is_best=is_best)[["attention", "experts", "nbytes", "is_best", cost]]


def memory(plan: "pd.DataFrame") -> "pd.DataFrame":
    """Return how many bytes each part takes in its tier, of what `MemoryPlan.to_frame` gave.

    Columns: tier, part, nbytes. Parts that take nothing are left out.
    """
    _require(plan, ("tier", "part", "nbytes"))
    return plan.loc[plan["nbytes"] > 0, ["tier", "part", "nbytes"]].reset_index(drop=True)


def recall(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Return recall against the number of guesses, a mean over layers, and chance.

    Columns: predictor; layers_ahead, of chance missing; guesses; recall. Chance is the last
    predictor: the guesses' share of all experts.

    Parameters
    ----------
    measured
        What `mixoff.measure_recall` gave.
    """
    import pandas as pd

    keys = ["predictor", "layers_ahead", "guesses"]
    _require(measured, (*keys, "recall", CHANCE))
    means = measured.groupby(keys, sort=False)["recall"].mean().reset_index()
    chance = measured.groupby("guesses")[CHANCE].first().rename("recall").reset_index()
    table = pd.concat([means, chance.assign(predictor=CHANCE)], ignore_index=True)
    return table.astype({"layers_ahead": "Int64"})[[*keys, "recall"]]


def relative_speed(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Return each algorithm's speed over that of the first, machine by machine.

    Columns: machine, algorithm, relative_speed. Of several rounds the median counts.

    Parameters
    ----------
    measured
        A frame with the columns machine, algorithm and tokens_per_second, such as
        `mixoff.measure_speed` gave with a machine's name added.

    Raises
    ------
    ConfigError
        If a machine lacks the first algorithm.
    """
    keys = ["machine", "algorithm"]
    _require(measured, (*keys, "tokens_per_second"))
    medians = measured.groupby(keys, sort=False)["tokens_per_second"].median().reset_index()
    first = measured["algorithm"].iloc[0]
    whole = medians[medians["algorithm"] == first].set_index("machine")["tokens_per_second"]
    if lacking := sorted({*medians["machine"]} - {*whole.index}):
        raise ConfigError(f"{', '.join(lacking)}: {first!r} was not measured there: add it.")
    relative = medians["tokens_per_second"] / medians["machine"].map(whole)
    return medians[keys].assign(relative_speed=relative)


def _require(table: "pd.DataFrame", columns: tuple[str, ...]) -> None:
    if missing := [name for name in columns if name not in table.columns]:
        raise ConfigError(
            f"a frame without {', '.join(missing)}: give one with {', '.join(columns)}."
        )
