"""What pictures of reuse show, as numbers. Knows distances; draws nothing."""

from typing import TYPE_CHECKING

import numpy as np

from mixoff.errors import ConfigError
from mixoff.reuse import reuse_distances
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd


def reuse_distance(trace: Trace, *, groups: int = 4) -> "pd.DataFrame":
    """Return which share of needed experts comes back within how many others, by layers.

    Columns: layers ("0-1"), others, share: of what these layers needed, how much had been needed
    before with at most so many other experts demanded since, companions included: `most` of
    `mixoff.reuse_distances`. LRU with one slot more than `others` hits at least this share, apart
    from what its first residents hit. What was never needed before is within no distance.

    Parameters
    ----------
    groups
        In how many groups of neighbours layers are taken together; at most as many as there are.

    Raises
    ------
    ConfigError
        If groups isn't 1 or more.
    """
    import pandas as pd

    if groups < 1:
        raise ConfigError(f"groups={groups}: give 1 or more.")
    distances = reuse_distances(trace)
    names = _group_names(trace.num_layers, min(groups, trace.num_layers))  # [L]
    needed = names[distances["layer"].to_numpy()]
    most = distances["most"].to_numpy(dtype=float, na_value=np.inf)
    rows = [
        (name, others, float((most[needed == name] <= others).mean()))
        for name in dict.fromkeys(needed[np.argsort(distances["layer"], kind="stable")])
        for others in range(trace.num_experts)
    ]
    return pd.DataFrame(rows, columns=["layers", "others", "share"])


def _group_names(layers: int, groups: int) -> "np.ndarray[tuple[int], np.dtype[np.object_]]":
    """Return for each layer what its group is called."""
    parts = [part.tolist() for part in np.array_split(np.arange(layers), groups)]
    named = [
        str(part[0]) if part[0] == part[-1] else f"{part[0]}-{part[-1]}"
        for part in parts
        for _ in part
    ]
    return np.array(named, dtype=object)
