"""The time and the error of the HQQ solver, beside those of the package hqq.

Run it from the root of a clone: ``.venv/bin/python benchmarks/solver.py``. In every round each arm
quantizes the same float32 matrix once, in an order that rotates from round to round: *mixoff*,
*hqq* on the whole matrix, and *hqq, 64 rows* at a time, which uses the cache better, and decides
for each 64 rows when to stop. Times are medians over rounds, with the range. Errors are the mean
|W - W_r| and |W - W_r| / |W| (Frobenius), and the difference of mixoff's from hqq's in percent.
Normal weights have a standard deviation of 0.02; heavy tails are Student's t with 3 degrees of
freedom, times 0.01.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from hqq.core.quantize import Quantizer
from torch import Tensor

from mixoff.quantization.hqq_solver import solve

SETTINGS = ((2, 16), (3, 64), (4, 64), (8, 64))  # nbits, group_size
ROWS = 64
Solution = tuple[Tensor, Tensor, Tensor]


def mixoff_solve(weight: Tensor, nbits: int, group_size: int) -> Solution:
    return solve(weight, nbits, group_size, axis=1)


def hqq_solve(weight: Tensor, nbits: int, group_size: int) -> Solution:
    codes, meta = Quantizer.quantize(
        weight,
        nbits=nbits,
        group_size=group_size,
        axis=1,
        round_zero=nbits == 4,
        bitpack=False,
        device="cpu",
    )
    return codes, meta["scale"], meta["zero"]


def hqq_solve_by_rows(weight: Tensor, nbits: int, group_size: int) -> Solution:
    parts = [hqq_solve(rows, nbits, group_size) for rows in weight.split(ROWS)]
    codes, scale, zero = (torch.cat(part) for part in zip(*parts, strict=True))
    return codes, scale, zero


ARMS: dict[str, Callable[[Tensor, int, int], Solution]] = {
    "mixoff": mixoff_solve,
    "hqq": hqq_solve,
    f"hqq, {ROWS} rows": hqq_solve_by_rows,
}


def errors(weight: Tensor, solution: Solution) -> tuple[float, float]:
    codes, scale, zero = solution
    error = ((codes.float() - zero) * scale).view_as(weight) - weight
    return error.abs().mean().item(), (error.norm() / weight.norm()).item()


def matrices(size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tails = torch.distributions.StudentT(3.0)
    return {
        "normal": torch.randn(size, size) * 0.02,
        "heavy tails": tails.sample((size, size)) * 0.01,
    }


def measure(weight: Tensor, nbits: int, group_size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for at in range(rounds):
        for name in names[at % len(names) :] + names[: at % len(names)]:
            start = time.perf_counter()
            ARMS[name](weight, nbits, group_size)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_times(seconds: dict[str, list[float]]) -> None:
    ours = statistics.median(seconds["mixoff"])
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"  {name:<14}{median:8.3f} s  ({spread} s){median / ours:8.1f} times")


def print_errors(weight: Tensor, nbits: int, group_size: int) -> None:
    ours = errors(weight, mixoff_solve(weight, nbits, group_size))
    theirs = errors(weight, hqq_solve(weight, nbits, group_size))
    for name, error, expected in zip(("mean", "Frobenius"), ours, theirs, strict=True):
        apart = 100 * (error / expected - 1)
        print(f"  {name} error {error:.6g}, hqq's {expected:.6g}: {apart:+.5f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.size} x {options.size}, {options.threads} threads, {options.rounds} rounds")
    for name, weight in matrices(options.size).items():
        for nbits, group_size in SETTINGS:
            print(f"\n{name}, {nbits} bits, groups of {group_size}", flush=True)
            print_times(measure(weight, nbits, group_size, options.rounds))
            print_errors(weight, nbits, group_size)


if __name__ == "__main__":
    main()
