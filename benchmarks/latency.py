"""Predicted and measured decoding speed under other slots and policies, and the error.

Run it from the root of a clone: ``.venv/bin/python benchmarks/latency.py``. It writes 0.2 GB into
``--folder`` and deletes them at the end.

A machine model is fitted to one recording of a reply (LRU, 4 slots) and to measured transfers. From
both, other caches are predicted, and then run: with the demo model as it is, whose records of 86 KB
take next to no time to move, and inflated to records of 3.1 MB. In each round all caches decode the
same reply, and the machine is fitted again; printed are medians over the rounds. One thread
computes, disks are read with direct I/O.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoTokenizer

from mixoff import Chat, OffloadConfig, build_model, demo_path, measure
from mixoff.convert import inflate_checkpoint
from mixoff.measure import CacheSetting, record_with_settings
from mixoff.simulate import Machine, predict_speed, recorded_speed

MESSAGE, TOKENS, INNER = "Tell me a story about a fox.", 40, 1024
SLOTS = (4, 1, 2, 6, 8)  # the machine is fitted to the first
POLICIES = ("lru", "lfu", "fifo")


def chats(folder: Path) -> dict[str, Chat]:
    """Return a chat for each policy, with its own cache."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_policy = {}
    for policy in POLICIES:
        offload = OffloadConfig(offload_per_layer=4, policy=policy, prefetch=1, io="direct")
        model, _ = build_model(folder, offload)
        by_policy[policy] = Chat(model, tokenizer, max_new_tokens=TOKENS)
    return by_policy


def one_round(by_policy: dict[str, Chat], transfers: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield the prediction and the measurement of each policy and size."""
    base = None
    for policy, chat in by_policy.items():
        (traces,) = record_with_settings(
            chat, [CacheSetting(slots) for slots in SLOTS], MESSAGE, rounds=1
        )
        base = base or traces[0]
        machine = Machine.fit(base, transfers)
        for slots, trace in zip(SLOTS, traces, strict=True):
            predicted = predict_speed(base, machine, policies=policy, slots=slots).iloc[0]
            measured = recorded_speed(trace).iloc[0]
            yield {
                "policy": policy,
                "slots": slots,
                "hit_rate": measured["hit_rate"],
                "predicted_hit_rate": predicted["hit_rate"],
                "wait_ms": measured["wait_ms"],
                "predicted_wait_ms": predicted["wait_ms"],
                "tokens_per_s": measured["tokens_per_s"],
                "predicted": predicted["tokens_per_s"],
                "error": predicted["tokens_per_s"] / measured["tokens_per_s"] - 1,
            }


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="where to write")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        heavy = inflate_checkpoint(demo_path(), Path(temporary) / "heavy", intermediate_size=INNER)
        transfers = measure.transfers(folder=temporary)
        for name, folder in (("demo", demo_path()), ("inflated", heavy)):
            by_policy = chats(folder)
            rows = [row for _ in range(options.rounds) for row in one_round(by_policy, transfers)]
            table = pd.DataFrame(rows).groupby(["policy", "slots"], sort=False).median()
            print(f"\n{name}\n{table.round(3).to_string()}")
            others = table["error"].iloc[1:].abs()
            print(
                f"absolute error: {others.median():.1%} in the median, {others.max():.1%} at worst"
            )


if __name__ == "__main__":
    main()
