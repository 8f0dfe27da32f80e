"""A predictor that applies the gates of later layers early."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixoff.predictors.base import Predictor


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
