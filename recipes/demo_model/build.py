"""Make the demo model: corpus, tokenizer, training, quantization, and what data/README.md says.

``make demo-model`` is all, ``python recipes/demo_model/build.py --steps quantize measure`` some.
"""

import argparse
import os
import re
import shutil

# OpenMP's threads would spin while they wait, which a shared machine can't afford.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from corpus import FOCUS, WEIGHTS, Weights, documents
from measure import measure
from mixoff import quantize_checkpoint
from report import write_report
from tokenizer import train_tokenizer
from train import Ids, Phase, new_model, train

STEPS = ["train", "quantize", "measure", "report"]
DATA = Path(__file__).resolve().parents[2] / "data"
ORIGINAL = DATA / "demo-mixtral-float16"
QUANTIZED = DATA / "demo-mixtral"
HELD_OUT = DATA / "heldout.txt"
PROMPTS = DATA / "newcomer_prompts.txt"
HELD_OUT_SEED, TOKENIZER_SEED = 777, 1
TRAINING_CHARACTERS, HELD_OUT_CHARACTERS, TOKENIZER_CHARACTERS = 36_000_000, 300_000, 3_000_000


PHASES = [
    (Phase(minutes=32, window=512, user_weight=0.4, seed=42), WEIGHTS),
    (
        Phase(minutes=58, window=256, user_weight=0.2, cool_down=0.5, long_windows=0.2, seed=43),
        FOCUS,
    ),
]


def words(text: str) -> str:
    """Return a text's words in lower case, with single spaces around them."""
    return re.sub(r"[^a-z0-9']+", " ", f" {text.lower()} ")


def kept_out_runs() -> list[str]:
    """Return every run of five words in the second half of the newcomer's prompts."""
    prompts = PROMPTS.read_text().splitlines()
    typed = [words(prompt).split() for prompt in prompts[len(prompts) // 2 :]]
    return [f" {' '.join(t[i : i + 5])} " for t in typed for i in range(len(t) - 4)]


def texts(seed: int, characters: int, weights: Weights = WEIGHTS) -> list[str]:
    """Return documents of about that many characters in all, none with a run kept out."""
    chosen, total, runs = [], 0, kept_out_runs()
    for document in documents(seed, weights):
        normalized = words(document)
        if any(run in normalized for run in runs):
            continue
        chosen.append(document)
        total += len(document)
        if total >= characters:
            return chosen
    raise AssertionError("documents() has no end")


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Ids:
    """Return all documents as one stream of tokens."""
    backend = tokenizer.backend_tokenizer
    ids = []
    for start in range(0, len(documents), 5000):
        batch = backend.encode_batch(documents[start : start + 5000], add_special_tokens=False)
        ids += [np.array(encoding.ids, dtype=np.uint16) for encoding in batch]
    return np.concatenate(ids)


def train_step(folder: Path) -> None:
    """Write the trained model in float16, its tokenizer, and the held-out text."""
    shutil.rmtree(folder, ignore_errors=True)  # its log tells of one training
    HELD_OUT.write_text("".join(texts(HELD_OUT_SEED, HELD_OUT_CHARACTERS)))
    tokenizer = train_tokenizer(islice(documents(TOKENIZER_SEED), TOKENIZER_CHARACTERS // 250))
    tokenizer.save_pretrained(folder)
    held_out = encode(tokenizer, [HELD_OUT.read_text()])
    model = new_model()
    for phase, weights in PHASES:
        ids = encode(tokenizer, texts(phase.seed, TRAINING_CHARACTERS, weights))
        train(model, ids, held_out, folder, phase)
    model.half().save_pretrained(folder)


def main() -> None:
    """Run the steps that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    options = parser.parse_args()
    if "train" in options.steps:
        train_step(ORIGINAL)
    if "quantize" in options.steps:
        shutil.rmtree(QUANTIZED, ignore_errors=True)
        quantize_checkpoint(ORIGINAL, QUANTIZED)
    if "measure" in options.steps:
        measure(QUANTIZED, ORIGINAL, DATA)
    if "report" in options.steps:
        write_report(DATA)


if __name__ == "__main__":
    main()
