"""A text's tokens, divided into the windows that a model reads at once. Knows ids; no models.

Letters: N tokens to predict, T tokens of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixoff.errors import ConfigError

_LONGEST_WINDOW = 2048


@dataclass(frozen=True)
class Windows:
    """A text's tokens in windows, whose tokens attend to their own window only.

    Parameters
    ----------
    ids
        The tokens [N + 1].
    size
        Tokens of a window; the last one may have fewer.
    """

    ids: Tensor
    size: int

    @property
    def predicted(self) -> int:
        """N, the number of predicted tokens; each is predicted once."""
        return len(self.ids) - 1

    def __len__(self) -> int:
        return -(-self.predicted // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each window's tokens, and the tokens that follow each of them, [T] both."""
        for start in range(0, self.predicted, self.size):
            piece = self.ids[start : start + self.size + 1]
            yield piece[:-1], piece[1:]


def text_windows(
    tokenizer: Any, text: str, positions: int, *, window: int | None, tokens: int | None
) -> Windows:
    """Return a text's windows. Special tokens in the text are encoded as special tokens.

    Parameters
    ----------
    positions
        The number of the model's positions.
    window
        Tokens of a window: by default the number of positions, at most 2,048.
    tokens
        The number of tokens to predict, from the start of the text; by default all.

    Raises
    ------
    ConfigError
        If the text has fewer than two tokens, `tokens` is below 1, or a window is longer than the
        model's positions.
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
