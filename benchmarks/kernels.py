"""The time of one Mixtral expert for one token on this CPU, with mixoff and other libraries.

Run it from the root of a clone, on an otherwise idle machine:
``.venv/bin/python benchmarks/kernels.py``. It takes about 4 GB of memory and two minutes.

An expert is three matrices of 4096 x 14336 weights: gate and up as one, and down. Weights are
random codes and scales, since times don't depend on them. ggml and mixoff compute both products in
one call (for one token, mixoff's includes the gated activation between them); other libraries take
two calls. Axis 0 is the layout that mixtral-offloading released, with its 2 bits for experts and 4
for attention. Every round runs all arms, in an order that changes, with a pause before each, after
which no threads of another arm spin. A run computes ``--copies`` experts one after the other, more
than a CPU's cache holds, as decoding does. Printed are median, least and most of an expert's time,
bytes read over the median, that rate as a share of the read bandwidth measured in the same rounds,
and the time over hqq's at the same bits. The error is the largest error over the largest result,
against float64 products of the same dequantized weights, on a slice of a matrix. hqq is its default
(PYTORCH) backend in float32; hqq and mixoff's plain torch compute one copy, one expert a run, since
memory bandwidth doesn't limit them. ``--tokens`` above 128, or 32 for axis 0, measures kernels that
dequantize first.

``--peers`` adds ggml, with weights as they are in a file and with weights that it repacks, and
bitsandbytes. Each runs in its own process, waits there for its next run, and returns its times.
Their environments are made by ``benchmarks/environments.py bitsandbytes llama``; an arm that isn't
available is named with the reason.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from peers.experts import Peer, expert_peers

from mixoff.kernels import kernels_named
from mixoff.kernels.cpu.compile import usable_isas
from mixoff.kernels.cpu.one_token import FeedForward
from mixoff.kernels.cpu.operations import most_tokens, multiply, multiply_dequantized
from mixoff.kernels.layout import PackedLocation
from mixoff.kernels.plans import as_packed
from mixoff.quantization import HQQ, HQQAxis0, PackedMatrix, QuantizedTensor
from mixoff.tiers.aligned import aligned_buffer
from mixoff.tiers.record import RecordLayout

HIDDEN, INNER = 4096, 14336
SHAPES = ((2 * INNER, HIDDEN), (HIDDEN, INNER))
AXIS0 = (HQQAxis0(2, 16, 128), HQQAxis0(4, 64, 256))  # as mixtral-offloading released
SCHEMES = (HQQ(2, 16, 8), HQQ(3, 64), HQQ(4, 64), HQQ(8, 64), *AXIS0)

PAUSE = 0.05  # seconds


@dataclass
class Arm:
    """An implementation of an expert, and its times."""

    name: str
    nbytes: int
    run: Callable[[int, int], list[float]]  # first expert and count: the seconds of each
    seconds: list[float]


def random_matrix(scheme: HQQ | HQQAxis0, shape: tuple[int, int], seed: int) -> QuantizedTensor:
    """Return a matrix of random codes and scales, whose weights are about 1 in size."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, (dtype, part) in scheme.part_specs(shape).items():
        if dtype is torch.uint8:
            parts[name] = torch.randint(256, part, dtype=dtype, generator=generator)
        else:
            parts[name] = torch.rand(part, generator=generator).to(dtype)
    if isinstance(scheme, HQQAxis0):
        parts["meta.meta_scale.scale"] *= 0.008
        parts["meta.meta_zero.scale"].fill_((2**scheme.nbits - 1) / 255)
    elif scheme.scale_nbits == 16:
        parts["zero"] *= 2**scheme.nbits - 1
    else:
        parts["pairs"] *= torch.tensor([0.004, 0.1, 0.004 * 2**scheme.nbits, 0.1])
    return QuantizedTensor(scheme, shape, parts)


def label(scheme: HQQ | HQQAxis0) -> str:
    """Return the name of a scheme in the table."""
    return f"{scheme.nbits} bits" + (" axis 0" if isinstance(scheme, HQQAxis0) else "")


def read_bandwidth(nbytes: int) -> Arm:
    """Return an arm that sums numbers, whose speed is that of reading memory."""
    numbers = torch.ones(nbytes // 8, dtype=torch.int64)
    return Arm("read memory", numbers.nbytes, timed(lambda number: numbers.sum()), [])


def resident(scheme: HQQ | HQQAxis0, seed: int) -> list[PackedMatrix]:
    """Return an expert's matrices in the memory layout of a slot of the cache."""
    layout = RecordLayout(scheme, tuple((str(number), s) for number, s in enumerate(SHAPES)))
    record = aligned_buffer(layout.nbytes)
    record.copy_(layout.pack({name: random_matrix(scheme, s, seed) for name, s in layout.shapes}))
    return [*layout.tensors(record).values()]


def ours(scheme: HQQ | HQQAxis0, copies: int, tokens: int) -> Iterator[Arm]:
    """Yield the arm of mixoff's kernels on each instruction set."""
    experts = [resident(scheme, 7 * n) for n in range(copies)]
    inputs = [torch.randn(tokens, s[1]) for s in SHAPES]
    most = most_tokens(torch.float32, type(as_packed(experts[0][0])))
    operation = multiply if tokens <= most else multiply_dequantized

    plans: dict[str, list[FeedForward]] = {isa: [] for isa in usable_isas()}
    if tokens == 1 and isinstance(scheme, HQQ):
        # Plans hold addresses alone; the experts are kept.
        pairs = [[PackedLocation.of(as_packed(m)) for m in expert] for expert in experts]
        for isa, planned in plans.items():
            planned += [FeedForward([a], b, torch.float32, isa) for a, b in pairs]

    def run(number: int, place: int, isa: str) -> None:
        copy = (number + place) % copies
        if plans[isa]:
            plans[isa][copy](inputs[0])
            return
        for matrix, x in zip(experts[copy], inputs, strict=True):
            operation(as_packed(matrix), x, isa=isa)

    nbytes = sum(matrix.nbytes for matrix in experts[0])
    for place, isa in enumerate(usable_isas()):
        yield Arm(f"{label(scheme)}, {isa}", nbytes, timed(partial(run, place=place, isa=isa)), [])


def torch_path(scheme: HQQ | HQQAxis0, tokens: int) -> Arm:
    """Return the arm of mixoff's plain torch kernels on the same bytes."""
    kernels, expert = kernels_named("torch"), [random_matrix(scheme, s, 0) for s in SHAPES]
    inputs = [torch.randn(tokens, s[1]) for s in SHAPES]

    def run(number: int) -> None:
        for matrix, x in zip(expert, inputs, strict=True):
            kernels.matmul(matrix, x)

    return Arm(f"{label(scheme)}, mixoff torch", sum(m.nbytes for m in expert), timed(run), [])


def hqq_path(scheme: HQQ | HQQAxis0, tokens: int) -> Arm:
    """Return the arm of hqq's layer, whose random weights are quantized without its solver."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    axis = 0 if isinstance(scheme, HQQAxis0) else 1
    settings = BaseQuantizeConfig(nbits=scheme.nbits, group_size=scheme.group_size, axis=axis)
    settings["weight_quant_params"]["optimize"] = False
    layers = []
    for rows, columns in SHAPES:
        linear = torch.nn.Linear(columns, rows, bias=False)
        layers.append(HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu"))
    inputs = [torch.randn(tokens, s[1]) for s in SHAPES]

    def run(number: int) -> None:
        with torch.inference_mode():
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    nbytes = sum(layer.W_q.nbytes for layer in layers)
    return Arm(f"{label(scheme)}, hqq", nbytes, timed(run), [])


def torch_int4(tokens: int, copies: int) -> Arm:
    """Return the arm of torch's product with 4-bit weights in bfloat16, groups of 64."""
    ops, expert = torch.ops.aten, []
    for rows, columns in SHAPES:
        codes = torch.randint(16, (rows, columns), dtype=torch.int32)
        packed = ops._convert_weight_to_int4pack_for_cpu(codes, 2)
        scales = torch.rand(columns // 64, rows, 2).bfloat16()
        expert.append((packed, scales))
    experts = [[(p.clone(), s.clone()) for p, s in expert] for _ in range(copies)]
    inputs = [torch.randn(tokens, s[1]).bfloat16() for s in SHAPES]

    def run(number: int) -> None:
        for (packed, scales), x in zip(experts[number % copies], inputs, strict=True):
            ops._weight_int4pack_mm_for_cpu(x, packed, 64, scales)

    nbytes = sum(part.nbytes for layer in expert for part in layer)
    return Arm("4 bits, torch int4pack (bfloat16)", nbytes, timed(run), [])


def peer_arm(peer: Peer) -> Arm:
    """Return the arm of a peer's worker, which measures its own time."""
    return Arm(peer.name, peer.nbytes, peer.worker.run, [])


def error(scheme: HQQ | HQQAxis0, isa: str) -> float:
    """Return the largest error of a slice's results over the largest result."""
    matrix = random_matrix(scheme, (512, HIDDEN), 3)
    x = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3))
    expected = x.double() @ matrix.dequantize().double().T
    product = multiply(as_packed(matrix), x, isa=isa).double()
    return float((product - expected).abs().max() / expected.abs().max())


def arms(tokens: int, copies: int) -> list[Arm]:
    """Return all arms but those of peers, read bandwidth first."""
    listed = [read_bandwidth(1 << 29)]
    for scheme in SCHEMES:
        listed += ours(scheme, copies, tokens)
        listed += [torch_path(scheme, tokens), hqq_path(scheme, tokens)]
    return [*listed, torch_int4(tokens, copies)]


def timed(run: Callable[[int], object]) -> Callable[[int, int], list[float]]:
    """Return a function that runs experts one after the other and returns the seconds of each."""

    def run_experts(first: int, count: int) -> list[float]:
        seconds = []
        for number in range(first, first + count):
            start = time.perf_counter()
            run(number)
            seconds.append(time.perf_counter() - start)
        return seconds

    return run_experts


def measure(measured: list[Arm], rounds: int, copies: int) -> None:
    """Run all arms in every round, in random order; the first round warms up."""
    for number in range(-1, rounds):
        for arm in random.Random(number).sample(measured, len(measured)):
            slow = "hqq" in arm.name or "mixoff torch" in arm.name
            if slow and number % 5:
                continue  # they are far slower, and vary less
            time.sleep(PAUSE)
            seconds = arm.run(number * copies, 1 if slow else copies)
            if number >= 0:
                arm.seconds += seconds


def report(measured: list[Arm], tokens: int) -> None:
    """Print a line for each arm."""
    medians = {arm.name: statistics.median(arm.seconds) for arm in measured}
    bandwidth = measured[0].nbytes / medians["read memory"]
    print(f"{tokens} token(s), {torch.get_num_threads()} threads; ms: median (min - max)")
    for arm in measured:
        rate = arm.nbytes / medians[arm.name]
        bits = arm.name.split(",")[0]
        hqq = medians.get(f"{bits}, hqq")
        print(
            f"{arm.name:34} {1e3 * medians[arm.name]:8.2f} ({1e3 * min(arm.seconds):.2f} - "
            f"{1e3 * max(arm.seconds):.2f}) {rate / 1e9:6.1f} GB/s {rate / bandwidth:6.0%}"
            + (f"  hqq / this {hqq / medians[arm.name]:.1f}" if hqq else "")
        )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", action="store_true", help="add bitsandbytes and ggml")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = {"tokens": options.tokens, "copies": options.copies, "threads": options.threads}
    with expert_peers(HIDDEN, INNER, **sizes) if options.peers else nullcontext([]) as peers:
        measured = [*arms(options.tokens, options.copies), *map(peer_arm, peers)]
        measure(measured, options.rounds, options.copies)
    report(measured, options.tokens)
    for scheme in SCHEMES:
        for isa in usable_isas():
            print(f"error, {label(scheme)}, {isa}: {error(scheme, isa):.1e}")


if __name__ == "__main__":
    main()
