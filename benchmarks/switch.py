"""From how many tokens on dequantizing is faster than multiplying straight from packed weights.

Run it from the root of a clone, on a machine that does nothing else:
``.venv/bin/python benchmarks/switch.py``. It takes two minutes.

Both ways take a 4096 x 4096 matrix of random codes and as many tokens; *packed* is
`mixoff.kernels.cpu.operations.multiply`, the others dequantize some rows at a time and leave the
product to torch's matrix library, in float32 and in bfloat16. Ways take turns, round by round;
printed are medians in milliseconds. `mixoff.kernels.cpu.operations.most_tokens` tells what this
found.
"""

import argparse
import statistics
import time
from functools import partial

import torch

from kernels import SCHEMES, random_matrix
from mixoff.kernels.cpu.operations import multiply, multiply_dequantized
from mixoff.kernels.plans import as_packed

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4096)
    given = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{capability}, {torch.get_num_threads()} threads; ms a matrix: median")
    print("bits  tokens    packed   float32  bfloat16")
    for scheme in SCHEMES:
        matrix = as_packed(random_matrix(scheme, (given.size, given.size), 0))
        for count in TOKENS:
            x = torch.randn(count, given.size)
            ways = (
                partial(multiply, matrix, x),
                partial(multiply_dequantized, matrix, x),
                partial(multiply_dequantized, matrix, x.bfloat16()),
            )
            found: list[list[float]] = [[] for _ in ways]
            for number in range(given.rounds + 1):
                for way, seconds in zip(ways, found, strict=True):
                    start = time.perf_counter()
                    way()
                    if number:
                        seconds.append(time.perf_counter() - start)
            medians = "".join(f"{1e3 * statistics.median(seconds):10.2f}" for seconds in found)
            print(f"{scheme.nbits:4} {count:7}{medians}", flush=True)


if __name__ == "__main__":
    main()
