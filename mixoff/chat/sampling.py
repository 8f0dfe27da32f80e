"""Sampling of the next token from a model's logits. Knows numbers; nothing of text."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mixoff.errors import ConfigError, MixoffError


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: the most probable token at temperature 0, else the top-p nucleus.

    The nucleus is the smallest set of tokens whose probability reaches `top_p` (arXiv 1904.09751),
    and the tokens as probable as its last. A draw takes one random number as a quantile in the
    vocabulary's order, not in the order of probability, so that rounding in the logits hardly ever
    changes it.

    Parameters
    ----------
    temperature
        The divisor of the logits; 0 always takes the most probable token.
    top_p
        The nucleus's share of probability, over 0 and at most 1.
    max_new_tokens
        The most tokens of a reply.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    temperature: float = 0.9
    top_p: float = 0.9
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature={self.temperature}: it divides the logits, so give a finite number, "
                "0 or more; 0 always takes the most probable token."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p={self.top_p}: it is a share of probability, so give more than 0 and at "
                "most 1."
            )
        if not (isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1):
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens}: a reply has at least one token, so give 1 "
                "or more."
            )

    def draw(self, logits: Tensor, generator: torch.Generator) -> int:
        """Return a token drawn from logits [V] with a CPU generator.

        Raises
        ------
        MixoffError
            If the highest logit isn't finite.
        """
        scores = logits.cpu().double()  # [V]; waits for the device: the next step needs the token
        top = scores.max().item()
        if not math.isfinite(top):
            raise MixoffError(
                f"The highest logit is {top}, so no token can be drawn: load the model in bfloat16."
            )
        if self.temperature == 0:
            return int(scores.argmax())
        probs = torch.softmax((scores - top) / self.temperature, dim=0)
        mass = torch.where(probs >= self._least(probs), probs, 0).cumsum(0)  # [V]
        point = (1 - torch.rand((), generator=generator, dtype=torch.float64)) * mass[-1]
        return int(torch.searchsorted(mass, point))  # 0 < point <= mass[-1]: never of mass 0

    def _least(self, probs: Tensor) -> Tensor:
        """Return the probability of the nucleus's last token."""
        ranked = probs.sort(descending=True).values
        ahead = ranked.cumsum(0) - ranked  # mass of the more probable tokens
        return ranked[max(int((ahead < self.top_p).sum()), 1) - 1]
