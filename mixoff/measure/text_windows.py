"""A text's tokens, cut into the windows that a model reads. Knows ids; no models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError

_LONGEST_WINDOW = 2048

# N tokens to predict, T tokens of a window


@dataclass(frozen=True)
class Windows:
    """A text's tokens; a window's tokens see only that window, and each but the first is predicted.

    Parameters
    ----------
    ids
        The tokens [N + 1].
    size
        Tokens that a model reads at once; the last window may have fewer.
    """

    ids: Tensor
    size: int

    @property
    def predicted(self) -> int:
        """N, the number of tokens that are predicted, each once."""
        return len(self.ids) - 1

    def __len__(self) -> int:
        return -(-self.predicted // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each window's tokens, and those that follow them, [T] both."""
        for start in range(0, self.predicted, self.size):
            piece = self.ids[start : start + self.size + 1]
            yield piece[:-1], piece[1:]


def text_windows(
    tokenizer: Any, text: str, positions: int, *, window: int | None, tokens: int | None
) -> Windows:
    """Return a text's windows. Special tokens written in the text are special.

    Parameters
    ----------
    positions
        How many the model has.
    window
        Tokens of a window: by default as many as the model has positions for, 2,048 at most.
    tokens
        How many tokens to predict: the text's first ones, by default all.

    Raises
    ------
    ConfigError
        If the text has fewer than two tokens, none are to be predicted, or a window has more than
        the model has positions for.
    """
    window = window or min(positions, _LONGEST_WINDOW)
    if not 1 <= window <= positions:
        raise ConfigError(
            f"window={window}: this model has {positions} positions, so give 1 to {positions}."
        )
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens={tokens}: give how many to predict, 1 or more.")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ConfigError(f"a text of {len(ids)} tokens has none to predict: give a longer one.")
    return Windows(torch.tensor(ids[: None if tokens is None else tokens + 1]), window)
