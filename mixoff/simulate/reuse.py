"""Reuse distances: what a layer demands between two demands of an expert. Knows no caches."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixoff.policies.usage import NEVER
from mixoff.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

# E experts of a layer, n of them in a demand


def reuse_distances(trace: Trace) -> "pd.DataFrame":
    """Return for every needed expert how many others its layer demanded since it needed it last.

    A row is a needed expert of a demand, in the order of `Trace.demands().expert`. Columns: step,
    layer, expert, fewest, most. Since a demand is a set, which has no order, there are two
    distances; both count distinct other experts, without those of the present demand. `fewest`
    counts the demands between the last one that needed this expert and the present one; `most`
    includes that last one: the expert's companions in it. Both are missing where no earlier demand
    of the recording needed the expert. Where demands are single experts, both are equal.

    LRU with s slots holds the s experts that were used last (Mattson, Gecsei, Slutz and Traiger
    1970, "Evaluation techniques for storage hierarchies": the stack property), so it hits where
    ``most < s`` and misses where ``fewest >= s``. Between these it depends on the order in which
    the cache used the companions, hits before misses, which differs with its size: the share of
    needed experts with ``most < s`` is the least that LRU hits after its start.
    """
    import pandas as pd

    demands = trace.demands()
    last = np.full((trace.num_layers, trace.num_experts), NEVER)  # number of each one's last demand
    fewest = np.full(len(demands.expert), NEVER)
    most = fewest.copy()
    for number, layer in enumerate(demands.layer.tolist()):
        part = slice(demands.first[number], demands.first[number + 1])
        needed = demands.expert[part]
        fewest[part], most[part] = _since(last[layer], needed)
        last[layer, needed] = number
    sizes = np.diff(demands.first)
    frame = pd.DataFrame(
        {
            "step": np.repeat(demands.step, sizes),
            "layer": np.repeat(demands.layer, sizes),
            "expert": demands.expert,
        }
    )
    unknown = most == NEVER
    columns = {"fewest": fewest, "most": most}
    return frame.assign(
        **{name: pd.arrays.IntegerArray(column, unknown) for name, column in columns.items()}
    )


def _since(
    last: NDArray[np.int64], needed: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both distances [n] of a demand, NEVER where there was none before."""
    own = last[needed, None]  # [n, 1]
    seen = own[:, 0] != NEVER
    fewest = (last > own).sum(axis=-1)  # [n] of [n, E]
    most = (last >= own).sum(axis=-1) - 1  # without itself
    return np.where(seen, fewest, NEVER), np.where(seen, most, NEVER)
