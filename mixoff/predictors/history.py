"""Predictors that count the experts that earlier tokens chose."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixoff.predictors.base import Predictor, RoutedExperts


class _History(Predictor):
    """The last token's choices in each layer; subclasses add counts."""

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        self._layers = len(gates)
        weight = gates[0].weight
        assert isinstance(weight, Tensor)
        self._experts = weight.shape[0]
        self._last: list[list[int]] = [[] for _ in gates]

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor | None:
        """Return the same row for every token, [T, E], or None before the first token."""
        if not self._last[target]:
            return None
        row = torch.from_numpy(self._row(target)).to(hidden_states.device)  # [E]
        return row.expand(len(hidden_states), -1)

    @abstractmethod
    def _row(self, target: int) -> NDArray[np.float32]: ...

    def observe(self, layer: int, choices: RoutedExperts) -> None:
        """Count the choices, token by token."""
        for chosen in choices:
            self._learn(layer, list(chosen))
            self._last[layer] = list(chosen)

    def _learn(self, layer: int, chosen: list[int]) -> None:
        """Count a token's choices; `_last` still has those of the token before."""


class PreviousToken(_History):
    """Guess the experts that the layer needed for the token before."""

    def _row(self, target: int) -> NDArray[np.float32]:
        row = np.zeros(self._experts, np.float32)
        row[self._last[target]] = 1
        return row  # [E]


class Frequency(_History):
    """Guess the experts that the layer needed most often so far."""

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        super().__init__(gates)
        self._counts = np.zeros((self._layers, self._experts), np.float32)

    def _row(self, target: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._counts[target]
        return row  # [E]

    def _learn(self, layer: int, chosen: list[int]) -> None:
        self._counts[layer, chosen] += 1


class Markov(_History):
    """Guess the experts that followed those of the token before most often.

    It is a first-order Markov chain for each layer, from a token's experts to the next token's.
    """

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        super().__init__(gates)
        self._counts = np.zeros((self._layers, self._experts, self._experts), np.float32)

    def _row(self, target: int) -> NDArray[np.float32]:
        counts = self._counts[target, self._last[target]]  # [k, E]
        row: NDArray[np.float32] = (counts / (1 + counts.sum(axis=1, keepdims=True))).sum(axis=0)
        return row  # [E]

    def _learn(self, layer: int, chosen: list[int]) -> None:
        for before in self._last[layer]:
            self._counts[layer, before, chosen] += 1
