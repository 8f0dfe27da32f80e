"""How well a model predicts a text. Knows losses; nothing of caches or files."""

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
    """Mean loss in nats a token, and how many tokens were predicted."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss: how many tokens the model hesitates between, on average."""
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
    """Return the model's loss on a text, every token but the first predicted once.

    The text is cut into windows without overlap, and a window's tokens see only that window.
    Special tokens written in the text are special.

    Parameters
    ----------
    window
        Tokens of a window: by default as many as the model has positions for, 2,048 at most.
    tokens
        How many tokens to predict: the text's first ones, by default all.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the text has fewer than two tokens, none are to be predicted, or a window has more than
        the model has positions for.
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
