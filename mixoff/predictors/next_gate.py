"""A predictor that applies the gates of later layers to the present layer's input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixoff.predictors.base import Predictor


class NextGate(Predictor):
    """Apply the gate of a layer ahead to this layer's input (the report, section 3.2).

    Each layer changes the hidden states little, so a later gate already gives a good guess. It has
    none for the next token.

    Parameters
    ----------
    gates
        Each layer's gate: a module with a ``weight`` [E, D].
    """

    def __init__(self, gates: Sequence[nn.Module]) -> None:
        self._weights = [gate.weight for gate in gates]

    def scores(self, layer: int, target: int, hidden_states: Tensor) -> Tensor | None:
        """Return the probabilities of the target layer's gate, [T, E]; None for the next token."""
        if target < layer:
            return None
        weight = self._weights[target]
        assert isinstance(weight, Tensor)
        logits = nn.functional.linear(hidden_states.to(weight.dtype), weight)  # [T, E]
        return torch.softmax(logits.float(), dim=-1)
