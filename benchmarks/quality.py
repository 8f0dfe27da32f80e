"""What quantization costs: loss and KL divergence over schemes, smallest files first.

Run it from the root of a clone: ``.venv/bin/python benchmarks/quality.py``. It takes the demo model
before quantization and ``data/heldout.txt``; another Mixtral in Hugging Face's form and another
text can be named. Each scheme is quantized into a temporary folder, measured and removed. A
scheme's name is bits of attention / bits of experts. ``first and last at 4`` stores the experts of
the first and the last layer in 4 bits, the others as the name says. KL divergence and agreement are
those of `mixoff.divergence`, against the unquantized model in float32; ``+-`` is the standard error
of the mean, as if tokens were independent.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from mixoff import (
    HQQ,
    Divergence,
    OffloadConfig,
    Reference,
    Scheme,
    Unquantized,
    build_model,
    compute_reference,
    divergence,
    quantize_checkpoint,
)
from mixoff.cli.report import checkpoint_facts
from mixoff.formats import open_checkpoint

DATA = Path(__file__).parents[1] / "data"
BITS = {bits: HQQ(bits, group_size=64) for bits in (8, 4, 3)}
BITS[2] = HQQ(2, group_size=16, scale_nbits=8)


def schemes(dtype: str, layers: int) -> Iterator[tuple[str, Scheme]]:
    """Yield names and schemes; `dtype` is what "none" keeps."""
    none = Unquantized(dtype)
    yield "none/none", Scheme(none, none)
    for attention, experts in ((8, 8), (4, 8), (4, 4), (4, 3), (4, 2), (3, 3), (3, 2), (2, 2)):
        yield f"{attention}/{experts}", Scheme(BITS[attention], BITS[experts])
    yield "4/2, groups of 64", Scheme(BITS[4], HQQ(2, group_size=64))
    outer = {0: BITS[4], layers - 1: BITS[4]}
    yield "4/2, first and last at 4", Scheme(BITS[4], BITS[2], layer_experts=outer)


@dataclass(frozen=True)
class Row:
    """A scheme, what it takes and what it costs; `nbytes` are those of all files of weights."""

    name: str
    bits_per_weight: float
    nbytes: int
    found: Divergence
    seconds: float


def measure(reference: Reference, name: str, scheme: Scheme) -> Row:
    """Quantize a model, compare it with the reference, and remove it."""
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        source, target = reference.original.files.name, Path(folder) / "model"
        quantize_checkpoint(source, target, scheme, progress=False)
        bits = checkpoint_facts(open_checkpoint(target))["experts_bits_per_weight"]
        nbytes = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        model, cache = build_model(target, OffloadConfig(offload_per_layer=0), dtype=torch.float32)
        found = divergence(model, reference)
        cache.close()
    return Row(name, bits, nbytes, found, time.perf_counter() - began)


def line(row: Row) -> str:
    """Return a row of the table, in Markdown."""
    found = row.found
    return (
        f"| {row.name} | {row.bits_per_weight:.2f} | {row.nbytes / 1e6:,.1f} "
        f"| {found.quantized.loss:.4f} | {found.rise:+.4f} +- {found.rise_standard_error:.4f} "
        f"| {found.mean:.5f} +- {found.standard_error:.5f} | {found.percentile_99:.4f} "
        f"| {found.top1_agreement:.2%} |"
    )


def print_table(rows: list[Row]) -> None:
    """Print the schemes, the smallest files first."""
    print("| attention/experts | bits/weight of experts | MB | loss | rise | KL | KL, 99th "
          "percentile | same top token |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: row.nbytes):
        print(line(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", type=Path, default=DATA / "demo-mixtral-float16")
    parser.add_argument("--text", type=Path, default=DATA / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=16_384)
    given = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # other work may share the cores
    tokenizer = AutoTokenizer.from_pretrained(given.original)
    text = given.text.read_text(encoding="utf-8")
    began = time.perf_counter()
    reference = compute_reference(given.original, tokenizer, text, tokens=given.tokens)
    print(f"unquantized, {reference.windows.predicted} tokens: {time.perf_counter() - began:.0f} s")
    config = reference.original.config
    rows = []
    for name, scheme in schemes(str(config.get("dtype") or "float16"), config["num_hidden_layers"]):
        rows.append(measure(reference, name, scheme))
        print(f"{name}: {rows[-1].seconds:.0f} s", flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
