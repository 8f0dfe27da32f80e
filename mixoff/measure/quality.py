"""The cost of quantization schemes: bytes, loss and divergence of each, on one text."""

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

# As in arXiv 2312.17238, section 3.3: small groups only at 2 bits.
_BY_BITS: dict[int, Quantization] = {
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
    arXiv 2312.17238, section 3.3. 16 bits mean no quantization.

    Parameters
    ----------
    dtype
        The type of 16 bits: the one that the model is stored in.

    Raises
    ------
    ConfigError
        If bits aren't 16, 8, 4, 3 or 2.
    """
    methods = {_UNQUANTIZED: Unquantized(dtype), **_BY_BITS}
    pairs = [*product(attention, experts)]
    if unknown := {*sum(pairs, ())} - {*methods}:
        raise ConfigError(f"bits={min(unknown)!r}: give some of {', '.join(map(str, methods))}.")
    return {
        f"{attention}/{experts}": Scheme(methods[attention], methods[experts])
        for attention, experts in pairs
    }


def quality(
    reference: Reference,
    schemes: Mapping[str, Scheme] | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Return a model's size and the quality of its predictions under each scheme, a row a scheme.

    For each scheme the original is quantized into a temporary folder, compared with the reference
    in float32, and removed.

    Parameters
    ----------
    reference
        The original's predictions of a text, from `mixoff.measure.compute_reference`.
    schemes
        The schemes, by name; by default those of `schemes_of_bits`, for the original's type.
    folder
        A folder with room for one quantized model; by default the system's for temporary files.
    progress
        Whether to show a progress bar.

    Returns
    -------
    pandas.DataFrame
        Columns: scheme, its name; attention and experts, their bits, 16 if not quantized;
        bits_per_weight of experts, scales and zeros included; nbytes of all files of weights; loss
        in nats a token; perplexity; rise of the loss and rise_error; kl and kl_error,
        kl_percentile_99 and top1_agreement, as `mixoff.measure.Divergence` describes them; seconds.

    Raises
    ------
    ConfigError
        If there is no scheme, or one can't store the model's matrices.
    """
    import pandas as pd

    if schemes is None:
        dtype = str(stored_dtype(reference.original.config)).removeprefix("torch.")
        schemes = schemes_of_bits(dtype=dtype)
    if not schemes:
        raise ConfigError("schemes is empty: give one or more.")
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
        yield from _costs(_divergence(target, reference))
    yield "seconds", time.perf_counter() - began


def _divergence(folder: Path, reference: Reference) -> Divergence:
    model, cache = build_model(folder, OffloadConfig(offload_per_layer=0), dtype=torch.float32)
    try:
        return kl_divergence(model, reference)
    finally:
        cache.close()


def _costs(divergence: Divergence) -> Iterator[tuple[str, float]]:
    yield "loss", divergence.quantized.loss
    yield "perplexity", divergence.quantized.perplexity
    yield "rise", divergence.rise
    yield "rise_error", divergence.rise_standard_error
    yield "kl", divergence.mean
    yield "kl_error", divergence.standard_error
    yield "kl_percentile_99", divergence.percentile_99
    yield "top1_agreement", divergence.top1_agreement


def nominal_bits(quantization: Quantization) -> int:
    """Return the bits of a quantization's name, without scales; 16 or 32 if it doesn't quantize."""
    if isinstance(quantization, Unquantized):
        return 8 * getattr(torch, quantization.dtype).itemsize  # type: ignore[no-any-return]
    return int(quantization.to_dict()["nbits"])


def _experts_bits_per_weight(checkpoint: RunnableCheckpoint) -> float:
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    weights = sum(math.prod(shape) for layout in layouts for _, shape in layout.shapes)
    return 8 * sum(layout.nbytes for layout in layouts) / weights
