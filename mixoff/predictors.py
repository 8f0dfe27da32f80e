"""Guesses of the experts that layers ahead will need. Knows gates and history; moves nothing.

T tokens, D hidden size, E experts, k experts a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixoff.cache import ExpertCache
from mixoff.errors import ConfigError, MixoffError

Choices = Sequence[Sequence[int]]  # [T][k] the experts of each token


class Predictor(ABC):
    """Says how likely each expert of a layer ahead is; a subclass is a small class."""

    @abstractmethod
    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor | None:
        """Return how likely each token needs each expert of another layer, [T, E]; None: no idea.

        Parameters
        ----------
        layer
            The layer that is computed now, whose choices aren't observed yet.
        target
            The layer to guess for; one that isn't behind `layer` is meant for the next token.
        hidden_states
            [T, D]: what the present layer's experts, and its gate, are given.
        """

    def observe(self, layer: int, choices: Choices) -> None:
        """Learn what a layer's tokens chose; by default, nothing."""
        return


class NextGate(Predictor):
    """Apply the gate of a layer ahead to what this layer's experts get (the report, section 3.2).

    Layers differ little from what they are given, so later gates can be asked early. Of the next
    token it knows nothing.

    Parameters
    ----------
    gates
        Each layer's gate: a module with a ``weight`` [E, D].
    """

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        self._weights = [gate.weight for gate in gates]

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor | None:
        """Return the probabilities that the other layer's gate gives, [T, E]."""
        if target < layer:
            return None
        weight = self._weights[target]
        assert isinstance(weight, Tensor)
        logits = nn.functional.linear(hidden_states.to(weight.dtype), weight)  # [T, E]
        return torch.softmax(logits.float(), dim=-1)


class _History(Predictor):
    """What is seen of each layer, in counts."""

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        self._layers = len(gates)
        weight = gates[0].weight
        assert isinstance(weight, Tensor)
        self._experts = weight.shape[0]
        self._last: list[list[int]] = [[] for _ in gates]

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor | None:
        """Return the same row for every token, [T, E]; None before there is a history."""
        if not self._last[target]:
            return None
        row = torch.from_numpy(self._row(target)).to(hidden_states.device)  # [E]
        return row.expand(len(hidden_states), -1)

    @abstractmethod
    def _row(self, target: int) -> NDArray[np.float32]: ...

    def observe(self, layer: int, choices: Choices) -> None:
        """Note the choices of each token after the other."""
        for chosen in choices:
            self._learn(layer, list(chosen))
            self._last[layer] = list(chosen)

    def _learn(self, layer: int, chosen: list[int]) -> None:
        """Count a token's choices; the token before is the last one still."""


class PreviousToken(_History):
    """Guess that a layer needs what it needed for the token before."""

    def _row(self, target: int) -> NDArray[np.float32]:
        row = np.zeros(self._experts, np.float32)
        row[self._last[target]] = 1
        return row  # [E]


class Frequency(_History):
    """Guess that a layer needs what it has needed most so far."""

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        super().__init__(gates)
        self._counts = np.zeros((self._layers, self._experts), np.float32)

    def _row(self, target: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._counts[target]
        return row  # [E]

    def _learn(self, layer: int, chosen: list[int]) -> None:
        self._counts[layer, chosen] += 1


class Markov(_History):
    """Guess that a layer needs what followed the experts of the token before most often.

    A first-order chain for each layer, from one token's experts to the next one's.
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


PREDICTORS: dict[str, Callable[[Sequence[nn.Module]], Predictor]] = {
    "next-gate": NextGate,
    "previous-token": PreviousToken,
    "frequency": Frequency,
    "markov": Markov,
}


def predictor_named(predictor: "str | Predictor", gates: Sequence[nn.Module]) -> Predictor:
    """Return the predictor of that name, or the given one itself.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if isinstance(predictor, Predictor):
        return predictor
    if predictor not in tuple(PREDICTORS):
        raise ConfigError(
            f"predictor={predictor!r}: give one of {', '.join(PREDICTORS)}, or a Predictor."
        )
    return PREDICTORS[predictor](gates)


class Prefetcher:
    """Asks a predictor for the next layers' likeliest experts, and a cache to fetch them.

    Parameters
    ----------
    cache
        Fetches.
    predictor
        Guesses.
    experts
        How many experts are guessed for each layer; 0 for none.
    layers_ahead
        For how many layers after the present one.
    """

    def __init__(
        self, cache: ExpertCache, predictor: Predictor, *, experts: int, layers_ahead: int = 1
    ) -> None:
        self.predictor = predictor
        self._cache = cache
        self._experts = min(experts, cache.num_experts)
        self._layers_ahead = min(layers_ahead, cache.num_layers - 1)

    @property
    def experts(self) -> int:
        """How many experts are guessed for each layer, 0 to all; one that is set serves at once."""
        return self._experts

    @experts.setter
    def experts(self, experts: int) -> None:
        if not 0 <= experts <= self._cache.num_experts:
            raise ConfigError(
                f"prefetch={experts}: a layer has {self._cache.num_experts} experts, so give 0 to "
                f"{self._cache.num_experts}."
            )
        self._experts = self._cache.about["prefetch"] = experts

    def look_ahead(self, layer: int, hidden_states: Tensor) -> dict[int, Tensor]:
        """Return the likeliest experts of layers ahead, on the device, by their distance."""
        ranked = {}
        for ahead in range(1, self._layers_ahead + 1):
            target = (layer + ahead) % self._cache.num_layers
            scores = self.predictor.scores(layer, target, hidden_states)  # [T, E]
            if scores is not None:
                ranked[ahead] = scores.sum(0).topk(self._experts).indices  # [experts]
        return ranked

    def prefetch(self, layer: int, choices: Choices, ranked: dict[int, list[int]]) -> None:
        """Fetch what was guessed, the nearest layer first, and learn what the layer chose."""
        self.predictor.observe(layer, choices)
        for ahead, experts in ranked.items():
            target = (layer + ahead) % self._cache.num_layers
            self._cache.prefetch(target, experts, layers_ahead=ahead)


def prefetcher_of(model: nn.Module) -> Prefetcher:
    """Return what guesses for the expert cache of a model that mixoff built.

    Raises
    ------
    MixoffError
        If the model has none.
    """
    for module in model.modules():
        if isinstance(prefetcher := getattr(module, "prefetcher", None), Prefetcher):
            return prefetcher
    raise MixoffError(
        f"{type(model).__name__} has nothing that guesses experts: build it with "
        "mixoff.build_model."
    )
