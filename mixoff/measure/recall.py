"""The share of needed experts that predictors guess. Knows routings; moves and times nothing.

Letters: T tokens, D hidden size, E experts, k experts a token.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mixoff.errors import ConfigError
from mixoff.models.layers.experts import gates_and_experts
from mixoff.predictors.base import Predictor
from mixoff.predictors.registry import PREDICTORS, predictor_named

if TYPE_CHECKING:
    import pandas as pd

Routing = tuple[Tensor, list[list[int]]]  # of a layer: what its gate is given [T, D], its choices


@dataclass
class Watched:
    """What passed through a model's routers, layer by layer, since it was cleared."""

    gates: list[nn.Module]
    layers: list[Routing] = field(default_factory=list)


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[Watched]:
    """Note inside the ``with`` block what each layer's router was given and what it chose.

    Raises
    ------
    ConfigError
        If the model has no experts behind a cache.
    """
    pairs = gates_and_experts(model)
    if not pairs:
        raise ConfigError(
            f"{type(model).__name__} has no experts behind a cache: build it with "
            "mixoff.build_model."
        )
    watched = Watched([gate for gate, _ in pairs])

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        watched.layers.append((given[0].detach(), given[1].tolist()))

    hooks = [experts.register_forward_pre_hook(note) for _, experts in pairs]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def recall(
    model: nn.Module,
    windows: Iterable[Sequence[int] | Tensor],
    *,
    predictors: Sequence[str] = tuple(PREDICTORS),
    guesses: Sequence[int] = (1, 2, 3, 4),
    layers_ahead: Sequence[int] = (0, 1, 2, 4),
) -> "pd.DataFrame":
    """Return the share of needed experts that each predictor guesses on a text.

    A window's tokens are processed in order, as decoding would, and predictors keep what they
    learned from one window to the next. A token for which a predictor has no scores yet counts as
    not guessed.

    Parameters
    ----------
    model
        A model built by `mixoff.build_model`.
    windows
        Token ids [T] of each window.
    predictors
        Names of predictors.
    guesses
        Numbers of experts to guess.
    layers_ahead
        Distances of the guessed layer. 0 is the layer itself before routing, a control:
        ``"next-gate"`` then is the router, and guesses every needed expert.

    Returns
    -------
    pandas.DataFrame
        A row per predictor, distance, number of guesses and guessed layer. Columns: predictor,
        layers_ahead, guesses, layer, recall, chance (guesses / E).

    Raises
    ------
    ConfigError
        If the model has no experts behind a cache, a predictor is unknown, or there is no window.
    """
    import pandas as pd

    with watch_routers(model) as watched:
        tallies = [
            _Tally(name, predictor_named(name, watched.gates), sorted(guesses), layers_ahead)
            for name in predictors
        ]
        for window in windows:
            watched.layers.clear()
            ids = torch.as_tensor(window)[None]  # [1, T]
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False)
                for tally in tallies:
                    tally.add(watched.layers)
        if not watched.layers:
            raise ConfigError("windows is empty: give one or more.")
    num_experts = len(watched.gates[0].weight)  # type: ignore[arg-type]  # a tensor [E, D]
    rows = [row for tally in tallies for row in tally.rows(num_experts)]
    columns = ["predictor", "layers_ahead", "guesses", "layer", "recall", "chance"]
    return pd.DataFrame(rows, columns=columns)


class _Tally:
    """The counts of one predictor: needed experts, and those of them that were guessed."""

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        guesses: Sequence[int],
        layers_ahead: Sequence[int],
    ) -> None:
        self._name, self._predictor = name, predictor
        self._guesses, self._layers_ahead = guesses, layers_ahead
        self._needed: dict[tuple[int, int], int] = {}  # by distance and guessed layer
        self._guessed: dict[tuple[int, int], list[int]] = {}  # for each number of guesses

    def add(self, layers: Sequence[Routing]) -> None:
        """Let the predictor guess and observe, token by token and layer by layer."""
        for token in range(len(layers[0][1])):
            for layer, (hidden_states, choices) in enumerate(layers):
                for ahead in self._layers_ahead:
                    if (target := layer + ahead) < len(layers):
                        self._guess(layer, target, hidden_states[token, None], layers, token)
                self._predictor.observe(layer, [choices[token]])

    def _guess(
        self, layer: int, target: int, hidden: Tensor, layers: Sequence[Routing], token: int
    ) -> None:
        scores = self._predictor.scores(layer, target, hidden)  # [1, E]
        ranked = [] if scores is None else scores[0].topk(self._guesses[-1]).indices.tolist()
        needed = layers[target][1][token]
        key = (target - layer, target)
        self._needed[key] = self._needed.get(key, 0) + len(needed)
        guessed = self._guessed.setdefault(key, [0] * len(self._guesses))
        for place, guesses in enumerate(self._guesses):
            guessed[place] += len({*ranked[:guesses]}.intersection(needed))

    def rows(self, num_experts: int) -> Iterator[tuple[str, int, int, int, float, float]]:
        """Yield the data frame's rows."""
        for (ahead, layer), guessed in sorted(self._guessed.items()):
            for guesses, count in zip(self._guesses, guessed, strict=True):
                recall = count / self._needed[ahead, layer]
                yield self._name, ahead, guesses, layer, recall, guesses / num_experts
