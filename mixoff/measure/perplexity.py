"""A model's loss and perplexity on a text. Knows models and losses; knows no caches or files."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mixoff.measure.text_windows import text_windows


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean loss in nats a token, and the number of predicted tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the power of the loss."""
        return math.exp(self.loss)


def held_out_loss(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    *,
    window: int | None = None,
    tokens: int | None = None,
    progress: bool = False,
) -> HeldOutLoss:
    """Return the model's loss on a text, of which every token but the first is predicted once.

    The text is divided into windows without overlap, and tokens attend to their own window only.
    Special tokens in the text are encoded as special tokens.

    Parameters
    ----------
    window
        Tokens of a window: by default the number of the model's positions, at most 2,048.
    tokens
        The number of tokens to predict, from the start of the text; by default all.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the text has fewer than two tokens, `tokens` is below 1, or a window is longer than the
        model's positions.
    """
    positions = int(model.config.max_position_embeddings)
    windows = text_windows(tokenizer, text, positions, window=window, tokens=tokens)
    total = 0.0
    for read, following in tqdm(windows, desc="evaluating", disable=not progress):
        with torch.inference_mode():
            logits = model(input_ids=read[None].to(model.device), use_cache=False).logits[0]
        following = following.to(logits.device)
        total += F.cross_entropy(logits.float(), following, reduction="sum").item()
    return HeldOutLoss(total / windows.predicted, windows.predicted)
