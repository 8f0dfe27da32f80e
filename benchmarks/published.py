"""The latency model's predictions of a published table, row by row, beside the published numbers.

Run it from the root of a clone: ``.venv/bin/python benchmarks/published.py``. The table is Table 2
of arXiv 2312.17238, in ``data``. Nothing is fitted to the rows that are predicted. For each GPU and
number of bits, the row without LRU cache and pre-loading determines the compute time of a token:
its time less 64 copies of an expert over that GPU's bus. The other rows are predicted from that,
with hits of *chance* (uniform routing, k of 8 experts resident) and with those of the *demo*
model's reply, whose recall is also used for guesses. Assumptions: 24 GB/s for the two GPUs on PCIe
4 and 12 GB/s for the two on PCIe 3, experts as large as in the released files, and copies that
don't slow compute. Naive offloading is assumed to copy all experts, which overestimates it: some
layers stayed resident.

The second table is the reverse: the bandwidth that two measured rows imply.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mixoff import OffloadConfig, Trace, demo_path, load_chat, measure
from mixoff.measure import CacheSetting, record_with_settings
from mixoff.simulate import LinkModel, Machine, PrefetchAccuracy, predict_speed

TABLE = Path(__file__).resolve().parents[1] / "data" / "published_table2.csv"
LAYERS, EXPERTS, TOP_K = 32, 8, 2
COPIES = LAYERS * TOP_K  # of a token without a cache
NBYTES = {2: 66_400_000, 3: 76_100_000}  # of an expert in the released files, by its bits
BYTES_PER_S = {"A100": 24e9, "RTX 3080": 24e9, "RTX 3060": 12e9, "T4": 12e9}
NO_CACHE, NO_GUESSES = "without LRU cache and pre-loading", "without speculative pre-loading"
FULL, NAIVE = "full", "naive offloading (accelerate)"
MESSAGE, STORY = "Tell me a story about a fox.", "A fox lived in the forest and met a hen."
GUESSED = 2


def demo_routing() -> tuple[Trace, float]:
    """Return a recorded reply of the demo model, and the recall of its guesses a layer ahead."""
    chat = load_chat(demo_path(), OffloadConfig(offload_per_layer=4, prefetch=1))
    ((trace,),) = record_with_settings(chat, [CacheSetting(4)], MESSAGE, rounds=1)
    ids = chat.tokenizer(STORY)["input_ids"]
    table = measure.recall(
        chat.model, [ids], predictors=["next-gate"], guesses=[GUESSED], layers_ahead=[1]
    )
    chat.close()
    return trace, float(table["recall"].mean())


def chance_routing() -> tuple[Trace, float]:
    """Return a trace of uniform routing, and a recall of chance."""
    trace = Trace.synthetic("uniform", tokens=200, layers=8, experts=EXPERTS, top_k=TOP_K, seed=1)
    return trace, GUESSED / EXPERTS


def token_s(
    trace: Trace, machine: Machine, nbytes: int, slots: int, guessing: PrefetchAccuracy | None
) -> float:
    """Return the seconds of a token in 32 layers with the routing of a trace."""
    trace.provenance["record_nbytes"] = [nbytes] * trace.num_layers
    predicted = predict_speed(trace, machine, policies="lru", slots=slots, guessing=guessing)
    return float(predicted["token_ms"].iloc[0]) / 1e3 * LAYERS / trace.num_layers


def predictions(
    rows: pd.DataFrame, bits: int, gpu: str, routings: dict[str, tuple[Trace, float]]
) -> Iterator[tuple[str, str, float]]:
    """Yield algorithm, routing, and predicted tokens a second for the rows of one GPU."""
    rate = next(rate for name, rate in BYTES_PER_S.items() if gpu.startswith(name))
    link = LinkModel(0.0, rate)
    copy_s = link.seconds(NBYTES[bits])
    compute_s = 1 / rows[NO_CACHE] - COPIES * copy_s
    machine = Machine(max(0.0, compute_s) / LAYERS, 0.0, 0.0, link)
    slots = 2 if gpu == "RTX 3060" else 4
    yield NAIVE, "any", 1 / (compute_s + LAYERS * EXPERTS * copy_s)
    for name, (trace, recall) in routings.items():
        guessing = PrefetchAccuracy(GUESSED, (recall,))
        yield NO_GUESSES, name, 1 / token_s(trace, machine, NBYTES[bits], slots, None)
        yield FULL, name, 1 / token_s(trace, machine, NBYTES[bits], slots, guessing)


def main() -> None:
    """Print both tables."""
    published = pd.read_csv(TABLE, comment="#")
    routings = {"chance": chance_routing(), "demo": demo_routing()}
    print(f"recall of {GUESSED} guesses a layer ahead: {routings['demo'][1]:.2f} (demo)")
    lines, implied = [], []
    for (bits, gpu), rows in published.groupby(["experts_nbits", "gpu"], sort=False):
        speeds = rows.set_index("algorithm")["tokens_per_s"]
        for algorithm, routing, predicted in predictions(speeds, bits, gpu, routings):
            doubtful = algorithm == NAIVE and gpu == "RTX 3060" and bits == 3  # see its note
            measured = float("nan") if doubtful else speeds[algorithm]
            lines.append((bits, gpu, algorithm, routing, measured, predicted))
        hit = (2 if gpu == "RTX 3060" else 4) / EXPERTS
        saved_s = 1 / speeds[NO_CACHE] - 1 / speeds[NO_GUESSES]
        implied.append((bits, gpu, COPIES * hit * NBYTES[bits] / saved_s / 1e9))
    table = pd.DataFrame(lines, columns=["bits", "gpu", "row", "routing", "published", "predicted"])
    table["error"] = table["predicted"] / table["published"] - 1
    print(table.round(3).to_string(index=False))
    errors = table.assign(error=table["error"].abs()).groupby(["row", "routing"])["error"]
    print("\nabsolute errors", errors.agg(["median", "max"]).round(3).to_string(), sep="\n")
    columns = ["bits", "gpu", "GB/s implied by LRU's gain at k/8 hits"]
    print("\n" + pd.DataFrame(implied, columns=columns).round(1).to_string(index=False))


if __name__ == "__main__":
    main()
