"""The number of tokens from which dequantizing is faster than multiplying from packed weights.

Run it from the root of a clone, on an otherwise idle machine:
``.venv/bin/python benchmarks/switch.py``. It takes two minutes.

All methods multiply a 4096 x 4096 matrix of random codes with the same tokens; *packed* is
`mixoff.kernels.cpu.operations.multiply`, the others dequantize some rows at a time and leave the
product to torch's matrix library, in float32 and in bfloat16. Every round runs all methods; printed
are medians in milliseconds. `mixoff.kernels.cpu.operations.most_tokens` has the result.
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
    options = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{capability}, {torch.get_num_threads()} threads; ms a matrix: median")
    print("bits  tokens    packed   float32  bfloat16")
    for scheme in SCHEMES:
        matrix = as_packed(random_matrix(scheme, (options.size, options.size), 0))
        for count in TOKENS:
            x = torch.randn(count, options.size)
            methods = (
                partial(multiply, matrix, x),
                partial(multiply_dequantized, matrix, x),
                partial(multiply_dequantized, matrix, x.bfloat16()),
            )
            times: list[list[float]] = [[] for _ in methods]
            for number in range(options.rounds + 1):
                for method, seconds in zip(methods, times, strict=True):
                    start = time.perf_counter()
                    method()
                    if number:
                        seconds.append(time.perf_counter() - start)
            medians = "".join(f"{1e3 * statistics.median(seconds):10.2f}" for seconds in times)
            print(f"{scheme.nbits:4} {count:7}{medians}", flush=True)


if __name__ == "__main__":
    main()
