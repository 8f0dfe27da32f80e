"""What schemes cost a model: bytes, loss and divergence of each, side by side on one text."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from mixoff.checkpoints.formats import RunnableCheckpoint, open_checkpoint
from mixoff.checkpoints.quantization_config import stored_dtype
from mixoff.config import OffloadConfig
from mixoff.convert import quantize_checkpoint
from mixoff.errors import ConfigError
from mixoff.measure.divergence import Divergence, kl_divergence
from mixoff.measure.reference import Reference
from mixoff.models.build import build_model
from mixoff.quantization import HQQ, Quantization, Scheme, Unquantized

if TYPE_CHECKING:
    import pandas as pd

_WAYS: dict[int, Quantization] = {  # the report's section 3.3: small groups only at 2 bits
    8: HQQ(8, group_size=64),
    4: HQQ(4, group_size=64),
    3: HQQ(3, group_size=64),
    2: HQQ(2, group_size=16, scale_nbits=8),
}
_UNQUANTIZED = 16


def schemes_of_bits(
    attention: Iterable[int] = (16, 4, 3, 2),
    experts: Iterable[int] = (16, 4, 3, 2),
    *,
    dtype: str = "float16",
) -> dict[str, Scheme]:
    """Return a scheme for each pair of bits, by its name: bits of attention / bits of experts.

    Weights share a scale in groups of 64; at 2 bits in groups of 16, with scales of 8 bits, as in
    the report's section 3.3. 16 bits are no quantization.

    Parameters
    ----------
    dtype
        What 16 bits keep: the type that the model is stored in.

    Raises
    ------
    ConfigError
        If bits aren't 16, 8, 4, 3 or 2.
    """
    ways = {_UNQUANTIZED: Unquantized(dtype), **_WAYS}
    pairs = [*product(attention, experts)]
    if unknown := {*sum(pairs, ())} - {*ways}:
        raise ConfigError(f"bits={min(unknown)!r}: give some of {', '.join(map(str, ways))}.")
    return {f"{one}/{other}": Scheme(ways[one], ways[other]) for one, other in pairs}


def quality(
    reference: Reference,
    schemes: Mapping[str, Scheme] | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Return what a model takes and how well it predicts under each scheme, a row a scheme.

    Each time the original is quantized into a temporary folder, compared with the reference in
    float32, and removed. Columns: scheme, its name; attention, experts: their bits, 16 if not
    quantized; bits_per_weight of experts, with all that is stored; nbytes of all weights' files;
    loss, in nats a token, and perplexity; rise of the loss and rise_error; kl and kl_error,
    kl_percentile_99 and top1_agreement, as `mixoff.measure.kl_divergence` tells; seconds.

    Parameters
    ----------
    reference
        What `mixoff.measure.compute_reference` made of the original, on the text that is to be
        predicted.
    schemes
        By a name; by default those of `schemes_of_bits`, for the type that the original is in.
    folder
        Where there is room for one quantized model; by default where the system keeps such files.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If there is no scheme, or one doesn't suit the model's shapes.
    """
    import pandas as pd

    if schemes is None:
        dtype = str(stored_dtype(reference.original.config)).removeprefix("torch.")
        schemes = schemes_of_bits(dtype=dtype)
    if not schemes:
        raise ConfigError("schemes: there is none: give one, or more.")
    named = tqdm(schemes.items(), "measuring schemes", disable=not progress)
    rows = [dict(_row(reference, name, scheme, folder)) for name, scheme in named]
    return pd.DataFrame(rows)


def _row(
    reference: Reference, name: str, scheme: Scheme, folder: str | Path | None
) -> Iterator[tuple[str, Any]]:
    began = time.perf_counter()
    with TemporaryDirectory(dir=folder) as temporary:
        target = Path(temporary) / "model"
        quantize_checkpoint(reference.original.files.name, target, scheme, progress=False)
        yield "scheme", name
        yield "attention", nominal_bits(scheme.attention)
        yield "experts", nominal_bits(scheme.experts)
        yield "bits_per_weight", _experts_bits_per_weight(open_checkpoint(target))
        yield "nbytes", sum(file.stat().st_size for file in target.glob("*.safetensors"))
        yield from _costs(_compared(target, reference))
    yield "seconds", time.perf_counter() - began


def _compared(folder: Path, reference: Reference) -> Divergence:
    model, cache = build_model(folder, OffloadConfig(offload_per_layer=0), dtype=torch.float32)
    try:
        return kl_divergence(model, reference)
    finally:
        cache.close()


def _costs(found: Divergence) -> Iterator[tuple[str, float]]:
    yield "loss", found.quantized.loss
    yield "perplexity", found.quantized.perplexity
    yield "rise", found.rise
    yield "rise_error", found.rise_standard_error
    yield "kl", found.mean
    yield "kl_error", found.standard_error
    yield "kl_percentile_99", found.percentile_99
    yield "top1_agreement", found.top1_agreement


def nominal_bits(quantization: Quantization) -> int:
    """Return the bits that a way to store weights is named after: 16 if they aren't quantized."""
    if isinstance(quantization, Unquantized):
        return 8 * getattr(torch, quantization.dtype).itemsize  # type: ignore[no-any-return]
    return int(quantization.to_dict()["nbits"])


def _experts_bits_per_weight(checkpoint: RunnableCheckpoint) -> float:
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    weights = sum(math.prod(shape) for layout in layouts for _, shape in layout.shapes)
    return 8 * sum(layout.nbytes for layout in layouts) / weights
