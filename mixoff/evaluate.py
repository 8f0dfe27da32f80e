"""How well a model predicts a text. Knows windows and losses; nothing of caches or files."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mixoff.errors import ConfigError

_LONGEST_WINDOW = 2048


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
    progress: bool = False,
) -> HeldOutLoss:
    """Return the model's loss on a text, every token but the first predicted once.

    The text is cut into windows without overlap, and a window's tokens see only that window.
    Special tokens written in the text are special.

    Parameters
    ----------
    window
        Tokens of a window: by default as many as the model has positions for, 2,048 at most.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the text has fewer than two tokens, or a window more than the model has positions for.
    """
    positions = int(model.config.max_position_embeddings)
    window = window or min(positions, _LONGEST_WINDOW)
    if not 1 <= window <= positions:
        raise ConfigError(
            f"window={window}: this model has {positions} positions, so give 1 to {positions}."
        )
    ids = torch.tensor(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long
    )
    predicted = len(ids) - 1
    if predicted < 1:
        raise ConfigError(f"a text of {len(ids)} tokens has none to predict: give a longer one.")
    total = 0.0
    for start in tqdm(range(0, predicted, window), desc="evaluating", disable=not progress):
        piece = ids[start : start + window + 1].to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=piece[None, :-1], use_cache=False).logits[0]  # [T, V]
        total += F.cross_entropy(logits.float(), piece[1:], reduction="sum").item()
    return HeldOutLoss(total / predicted, predicted)
