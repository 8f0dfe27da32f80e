"""The time of a sweep, and the hit rates of uniform routing beside their known values.

Run it from the root of a clone, on one core to compare with others: ``taskset -c 0
.venv/bin/python benchmarks/replay.py``. It prints the time of five policies and eight sizes over
10,000 tokens of 32 layers, top-2 of 8, which must stay under 5 s; and for 20,000 tokens of one
layer the hit rates beside those of chance (k / 8), and beside bounds from an independent
simulation.
"""

import platform
import time

from mixoff import Trace, sweep

POLICIES = ("lru", "lfu", "fifo", "belady", "belady-bypass")
TOKENS, LAYERS, EXPERTS, TOP_K = 10_000, 32, 8, 2
REPEATS = 3
EXPECTED = {  # in percent, at 1 to 8 slots
    "lru": tuple(100 * slots / EXPERTS for slots in range(1, EXPERTS + 1)),
    "belady": (12.5, 25.2, 51.6, 67.4, 78.9, 87.8, 94.7, 100.0),
    "belady-bypass": (30.3, 48.8, 62.4, 73.2, 82.0, 89.3, 95.2, 100.0),
}


def uniform(tokens: int, layers: int) -> Trace:
    return Trace.synthetic(
        "uniform", tokens=tokens, layers=layers, experts=EXPERTS, top_k=TOP_K, seed=5
    )


def time_sweep() -> None:
    trace = uniform(TOKENS, LAYERS)
    print(f"{TOKENS:,} tokens x {LAYERS} layers, {', '.join(POLICIES)}, 1 to {EXPERTS} slots")
    print(f"Python {platform.python_version()}, {platform.machine()}")
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        sweep(trace, POLICIES)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"  {wall:.2f} s, of which {processor:.2f} s on a processor")


def compare_uniform() -> None:
    table = sweep(uniform(20_000, 1), list(EXPECTED)).set_index(["slots", "policy"])["hit_rate"]
    print("\nHit rates of uniform routing in percent, measured and (expected)")
    print("slots" + "".join(f"{policy:>18}" for policy in EXPECTED))
    furthest = 0.0
    for place in range(EXPERTS):
        cells = []
        for policy, expected in EXPECTED.items():
            measured = 100 * table[place + 1, policy]
            furthest = max(furthest, abs(measured - expected[place]))
            cells.append(f"{measured:9.1f} ({expected[place]:5.1f})")
        print(f"{place + 1:>5}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"furthest apart: {furthest:.2f} points; at most 1 is allowed")


if __name__ == "__main__":
    time_sweep()
    compare_uniform()
