"""Guesses of the experts that layers ahead will need. Knows gates and history; moves nothing.

T tokens, D hidden size, E experts, k experts a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table of predictors is read without torch
    from torch import Tensor

RoutedExperts = Sequence[Sequence[int]]  # [T][k] the experts of each token


class Predictor(ABC):
    """Says how likely each expert of a layer ahead is; a subclass is a small class."""

    @abstractmethod
    def scores(self, layer: int, target: int, hidden_states: "Tensor") -> "Tensor | None":
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

    def observe(self, layer: int, choices: RoutedExperts) -> None:
        """Learn what a layer's tokens chose; by default, nothing."""
        return
