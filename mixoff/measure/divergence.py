"""The KL divergence of a quantized model's predictions from the unquantized model's.

Knows models and logits; knows no files. Letters: T tokens of a window, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from mixoff.checkpoints.unquantized import UnquantizedCheckpoint
from mixoff.errors import ConfigError
from mixoff.measure.perplexity import HeldOutLoss
from mixoff.measure.reference import Reference

_ROWS = 256  # tokens that are compared at once: 65 MB of float64 for a vocabulary of 32,000
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
)


@dataclass(frozen=True)
class Divergence:
    """The KL divergence of a quantized model from the unquantized one, over the tokens of a text.

    The divergence at a token is the sum over the vocabulary of p (log p - log q), where p is the
    unquantized model's distribution of the next token and q the quantized model's (Kullback and
    Leibler, "On Information and Sufficiency", 1951, equation 2.4). It is 0 where both are equal and
    doesn't depend on the token that follows, so it shows small damage that the loss hides in noise.

    Parameters
    ----------
    mean
        Mean divergence, in nats a token.
    standard_error, rise_standard_error
        Standard errors of `mean` and of `rise`, in nats, as if tokens were independent; NaN for a
        single token.
    median, percentile_99
        Divergence that half of all tokens, and 99 of 100, don't exceed, in nats.
    top1_agreement
        Share of tokens, 0 to 1, for which both models have the same most probable token.
    quantized, unquantized
        The losses of both models on the text.
    """

    mean: float
    standard_error: float
    median: float
    percentile_99: float
    top1_agreement: float
    rise_standard_error: float
    quantized: HeldOutLoss
    unquantized: HeldOutLoss

    @property
    def rise(self) -> float:
        """Increase of the quantized model's loss, in nats a token; noise can make it negative."""
        return self.quantized.loss - self.unquantized.loss

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return self.quantized.tokens


def kl_divergence(
    model: PreTrainedModel, reference: Reference, *, progress: bool = False
) -> Divergence:
    """Return the divergence of a model from a reference, on the reference's text.

    Logits are compared in float64; `model` computes them in its own type, the reference in float32.
    Memory beyond both is the model's logits of one window (250 MiB for Mixtral-8x7B in float32),
    a copy of them, and a copy of the reference's head where the model isn't on the CPU.

    Parameters
    ----------
    model
        The quantized model.
    reference
        The unquantized model's predictions, from `mixoff.measure.compute_reference`.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If the model and the reference differ in a size.
    """
    refuse_other_sizes(model.config.to_dict(), reference.original, str(model.name_or_path))
    reference = reference.to(model.device)
    start = 0
    pieces: list[Tensor] = []  # [4, rows] each
    for read, following in tqdm(reference.windows, desc="comparing", disable=not progress):
        with torch.inference_mode():
            logits = model(input_ids=read[None].to(model.device), use_cache=False).logits[0]
            pieces += _compare_window(reference, start, logits, following.to(logits.device))
        start += len(read)
    return _summary(torch.cat(pieces, dim=1).numpy())


def refuse_other_sizes(
    config: Mapping[str, Any], original: UnquantizedCheckpoint, name: str
) -> None:
    """Refuse to compare models that differ in a size.

    Parameters
    ----------
    config
        The quantized model's ``config.json``.
    original
        The unquantized model.
    name
        The quantized model's name, for the message.

    Raises
    ------
    ConfigError
        If the models differ in a size: the message names the sizes.
    """
    ours, theirs = (_settings(known) for known in (config, original.config))
    differing = [
        f"{size} is {_size(theirs, size)} there and {_size(ours, size)} here"
        for size in _SIZES
        if _size(ours, size) != _size(theirs, size)
    ]
    if differing:
        raise ConfigError(
            f"{original.files.name}: {name} was not made from it ({', '.join(differing)}): "
            "give the model that was quantized."
        )


def _settings(config: Mapping[str, Any]) -> PreTrainedConfig:
    """Return settings as transformers has them, which knows those that are left out."""
    return CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))


def _size(config: Any, size: str) -> int:
    if size == "head_dim":  # optional: by default it follows from other sizes
        return int(config.head_dim or config.hidden_size // config.num_attention_heads)
    return int(getattr(config, size))


def _compare_window(
    reference: Reference, start: int, logits: Tensor, following: Tensor
) -> Iterator[Tensor]:
    """Yield divergences, agreements and both models' losses [4, rows] of a window's pieces."""
    for first in range(0, len(following), _ROWS):
        rows = slice(first, first + _ROWS)
        tokens = following[rows, None]
        theirs = reference.logits(slice(start + first, start + first + len(tokens)))  # [rows, V]
        log_p, log_q = (x.double().log_softmax(-1) for x in (theirs, logits[rows]))
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)  # [rows]
        agree = theirs.argmax(-1) == logits[rows].argmax(-1)
        losses = [-x.gather(-1, tokens)[:, 0] for x in (log_q, log_p)]
        yield torch.stack([kl, agree.double(), *losses]).cpu()


def _summary(values: NDArray[np.float64]) -> Divergence:
    (kl, agree, quantized, unquantized), tokens = values, values.shape[1]
    return Divergence(
        mean=float(kl.mean()),
        standard_error=_standard_error(kl),
        median=float(np.median(kl)),
        percentile_99=float(np.percentile(kl, 99)),
        top1_agreement=float(agree.mean()),
        rise_standard_error=_standard_error(quantized - unquantized),
        quantized=HeldOutLoss(float(quantized.mean()), tokens),
        unquantized=HeldOutLoss(float(unquantized.mean()), tokens),
    )


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
