"""The contract of a predictor of experts. Knows gates and history; moves nothing.

T tokens, D hidden size, E experts, k experts a token.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table of predictors must load no torch
    from torch import Tensor

RoutedExperts = Sequence[Sequence[int]]  # [T][k] the experts of each token


class Predictor(ABC):
    """Scores the experts of layers ahead; a subclass is a small class with one method, `scores`."""

    @abstractmethod
    def scores(self, layer: int, target: int, hidden_states: "Tensor") -> "Tensor | None":
        """Return scores of another layer's experts, [T, E], the likeliest highest, or None.

        None stands for no guess.

        Parameters
        ----------
        layer
            The layer that is computed now, whose choices aren't observed yet.
        target
            The layer to guess for: of this token if it is later than `layer`, else of the next one.
        hidden_states
            [T, D]: the input of the present layer's experts and of its gate.
        """

    def observe(self, layer: int, choices: RoutedExperts) -> None:
        """Learn from the experts that a layer's tokens chose; by default, do nothing."""
        return
