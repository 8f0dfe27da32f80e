"""The cost of quantization: loss and KL divergence of several schemes, smallest files first.

Run it from the root of a clone: ``.venv/bin/python benchmarks/quality.py``. It takes the demo model
before quantization and ``data/heldout.txt``; another Mixtral in Hugging Face's form and another
text can be given. For each scheme the model is quantized into a temporary folder, measured and
removed. A scheme's name is bits of attention / bits of experts. ``first and last at 4`` stores the
experts of the first and the last layer in 4 bits, the others as the name says. KL divergence and
agreement are those of `mixoff.measure.kl_divergence`, against the unquantized model in float32;
``+-`` is the standard error of the mean, as if tokens were independent.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from mixoff import Scheme
from mixoff.measure import compute_reference, quality, schemes_of_bits
from mixoff.quantization import HQQ

DATA = Path(__file__).parents[1] / "data"
PAIRS = ("16/16", "8/8", "4/8", "4/4", "4/3", "4/2", "3/3", "3/2", "2/2")


def schemes(dtype: str, layers: int) -> dict[str, Scheme]:
    """Return schemes by their names; `dtype` is the type of 16 bits."""
    pairs = schemes_of_bits((16, 8, 4, 3, 2), (16, 8, 4, 3, 2), dtype=dtype)
    four, two = pairs["4/4"].experts, pairs["4/2"].experts
    outer = {0: four, layers - 1: four}
    return {name: pairs[name] for name in PAIRS} | {
        "4/2, groups of 64": Scheme(four, HQQ(2, group_size=64)),
        "4/2, first and last at 4": Scheme(four, two, layer_experts=outer),
    }


def lines(table: pd.DataFrame) -> Iterator[str]:
    """Yield the rows of the table, in Markdown."""
    for row in table.sort_values("nbytes", kind="stable").itertuples():
        yield (
            f"| {row.scheme} | {row.bits_per_weight:.2f} | {row.nbytes / 1e6:,.1f} "
            f"| {row.loss:.4f} | {row.rise:+.4f} +- {row.rise_error:.4f} "
            f"| {row.kl:.5f} +- {row.kl_error:.5f} | {row.kl_percentile_99:.4f} "
            f"| {row.top1_agreement:.2%} | {row.seconds:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", type=Path, default=DATA / "demo-mixtral-float16")
    parser.add_argument("--text", type=Path, default=DATA / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=16_384)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # other work may share the cores
    tokenizer = AutoTokenizer.from_pretrained(options.original)
    text = options.text.read_text(encoding="utf-8")
    began = time.perf_counter()
    reference = compute_reference(options.original, tokenizer, text, tokens=options.tokens)
    print(f"unquantized, {reference.windows.predicted} tokens: {time.perf_counter() - began:.0f} s")
    config = reference.original.config
    wanted = schemes(str(config.get("dtype") or "float16"), config["num_hidden_layers"])
    print("| attention/experts | bits/weight of experts | MB | loss | rise | KL | KL, 99th "
          "percentile | same top token | seconds |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    print(*lines(quality(reference, wanted, progress=True)), sep="\n")


if __name__ == "__main__":
    main()
