"""The share of needed experts that each predictor guesses, on the demo model and held-out text.

Run it from the root of a clone: ``.venv/bin/python benchmarks/recall.py``. Recall is the share of
the experts chosen by tokens that are among the guesses, a mean over layers and tokens of
``data/heldout.txt``, in windows of 512 whose tokens are processed in order. Chance is the number of
guesses over the number of experts. Next-gate guesses n layers ahead from the inputs of the present
layer's experts; 0 layers ahead it is the router itself, which must guess all: a control. The other
predictors use only what the layer needed before, however far ahead it is.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer

from mixoff import build_model, demo_path
from mixoff.measure import recall

TEXT = Path(__file__).parents[1] / "data" / "heldout.txt"
WINDOW = 512


def held_out_windows(tokens: int) -> list[list[int]]:
    """Return the ids of the text's first tokens, in windows."""
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    text = TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]


def measure(tokens: int) -> pd.DataFrame:
    """Return the demo model's recall, with the columns of `mixoff.measure.recall`."""
    torch.set_num_threads(1)  # other work may share the cores
    model, _ = build_model(demo_path())
    return recall(model, held_out_windows(tokens))


def print_table(table: pd.DataFrame) -> None:
    """Print the mean over layers of each predictor and distance, beside chance."""
    means = table.pivot_table("recall", ["predictor", "layers_ahead"], "guesses", sort=False)
    chance = table.groupby("guesses")["chance"].first()
    print(f"{'predictor':<16}{'layers ahead':>14}{'layers':>8}" + "".join(
        f"{f'{guesses} guessed':>11}" for guesses in means.columns))  # fmt: skip
    for (predictor, ahead), row in means.iterrows():
        if ahead == 0 and predictor != "next-gate":
            continue  # predictors from history don't depend on the distance
        name = "the router" if ahead == 0 else predictor
        own = table[(table["predictor"] == predictor) & (table["layers_ahead"] == ahead)]
        layers = f"{own['layer'].min()}-{own['layer'].max()}"
        cells = "".join(f"{share:>10.1%} " for share in row)
        print(f"{name:<16}{ahead:>14}{layers:>8}{cells}")
    print(f"{'chance':<16}{'':>14}{'':>8}" + "".join(f"{share:>10.1%} " for share in chance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    tokens = parser.parse_args().tokens
    began = time.perf_counter()
    table = measure(tokens)
    print(f"{tokens} tokens, {time.perf_counter() - began:.0f} s\n")
    print_table(table)
    layers = table[(table["predictor"] == "next-gate") & (table["guesses"] == 2)]
    print("\nNext-gate, 2 guesses, by the layer that is guessed (across) and its distance (down)")
    by_distance = layers.pivot_table("recall", "layers_ahead", "layer")
    print(by_distance.to_string(float_format=lambda share: f"{share:.1%}", na_rep=""))


if __name__ == "__main__":
    main()
