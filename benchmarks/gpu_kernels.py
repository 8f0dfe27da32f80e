"""The time of one Mixtral expert on this GPU, from packed weights and with other libraries.

Run it from the root of a clone, on an otherwise idle GPU:
``.venv/bin/python benchmarks/gpu_kernels.py``. It needs a GPU that CUDA can use, with 8 GB free.

An expert is three matrices of 4096 x 14336 weights: gate, up and down. Weights are random codes and
scales, since times don't depend on them. Inputs are float16. Every round runs all arms, and each
arm uses so many copies of its expert that their bytes are several times the GPU's L2 cache. Times
are those between CUDA events around ``--repeats`` experts after a warm-up: the GPU's time, unless
the host is slower at launching. Printed are median, least and most of the rounds in microseconds an
expert, bytes of packed weights over the median, and that rate as a share of a copy from device to
device (bytes read and written). Errors are the largest error over the largest result, against
float64 products of the same dequantized weights, on a slice of a matrix. hqq is its PYTORCH backend
in float16. gemlite is measured where it can be imported, for 8, 4 and 2 bits in groups of 64: it
has no 3 bits and no 8-bit scales.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from mixoff.kernels import kernels_named
from mixoff.kernels.plans import as_packed
from mixoff.quantization import HQQ, QuantizedTensor

HIDDEN, INNER = 4096, 14336
SHAPES = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
SCHEMES = (HQQ(2, 16, 8), HQQ(3, 64), HQQ(4, 64), HQQ(8, 64))
Work = Callable[[int], object]  # its argument is the number of the copy


@dataclass
class Arm:
    """An implementation of an expert, and its times."""

    name: str
    nbytes: int  # of an expert's weights
    copies: int
    run: Work
    microseconds: list[float] = field(default_factory=list)


def random_matrix(scheme: HQQ, shape: tuple[int, int], seed: int) -> QuantizedTensor:
    """Return a matrix of random codes and scales, whose weights are about 0.01 in size."""
    generator = torch.Generator("cuda").manual_seed(seed)
    parts = {}
    for name, (dtype, part) in scheme.part_specs(shape).items():
        if dtype is torch.uint8:
            parts[name] = torch.randint(256, part, dtype=dtype, device="cuda", generator=generator)
        else:
            values = torch.rand(part, device="cuda", generator=generator) / 100
            parts[name] = values.to(dtype)
    if scheme.scale_nbits == 16:
        parts["zero"] *= 100 * (2**scheme.nbits - 1)
    else:
        parts["pairs"] *= torch.tensor([0.004, 1, 0.4 * 2**scheme.nbits, 1], device="cuda")
    return QuantizedTensor(scheme, shape, parts)


def inputs(tokens: int) -> list[torch.Tensor]:
    """Return float16 activations for each matrix."""
    return [torch.randn(tokens, s[1], device="cuda", dtype=torch.float16) for s in SHAPES]


def copies_of(nbytes: int) -> int:
    """Return the number of experts whose bytes are several times the L2 cache."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-4 * l2 // nbytes))


def copy_arm() -> Arm:
    """Return an arm that copies on the device; its bytes are those read and written."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return Arm("copy 1 GiB on the device", 2 * source.nbytes, 1, lambda n: target.copy_(source))


def matrix_arm(name: str, nbytes: int, make: Callable[[int], Sequence[Work]]) -> Arm:
    """Return an arm; `make(seed)` returns the products with an expert's three matrices."""
    copies = copies_of(nbytes)
    experts = [make(seed) for seed in range(copies)]

    def run(number: int) -> None:
        for product in experts[number % copies]:
            product(number)

    return Arm(name, nbytes, copies, run)


def ours(scheme: HQQ, kernels_name: str, tokens: int) -> Arm:
    """Return the arm of mixoff's kernels of a name."""
    kernels, x = kernels_named(kernels_name, "cuda"), inputs(tokens)
    expert = [random_matrix(scheme, s, 0) for s in SHAPES]

    def make(seed: int) -> list[Work]:
        matrices = [random_matrix(scheme, s, seed) for s in SHAPES]
        pairs = zip(matrices, x, strict=True)
        return [lambda n, m=m, x=x: kernels.matmul(m, x) for m, x in pairs]

    nbytes = sum(m.nbytes for m in expert)
    return matrix_arm(f"{scheme.nbits} bits, mixoff {kernels_name}", nbytes, make)


def hqq_arm(scheme: HQQ, tokens: int) -> Arm:
    """Return the arm of hqq's layer in float16, whose random weights are quantized unsolved."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear

    HQQLinear.set_backend(HQQBackend.PYTORCH)
    settings = BaseQuantizeConfig(nbits=scheme.nbits, group_size=scheme.group_size, axis=1)
    settings["weight_quant_params"]["optimize"] = False
    layers = []
    for rows, columns in SHAPES:
        linear = torch.nn.Linear(columns, rows, bias=False, device="cuda", dtype=torch.float16)
        layers.append(HQQLinear(linear, settings, compute_dtype=torch.float16, device="cuda"))
    x = inputs(tokens)
    pairs = list(zip(layers, x, strict=True))
    works = [lambda n, layer=layer, x=x: layer(x) for layer, x in pairs]
    nbytes = sum(layer.W_q.nbytes for layer in layers)
    return matrix_arm(f"{scheme.nbits} bits, hqq PYTORCH", nbytes, lambda seed: works)


def float16_arm(tokens: int) -> Arm:
    """Return the arm of a product with float16 weights."""
    x = inputs(tokens)

    def make(seed: int) -> list[Work]:
        weights = [torch.randn(s, device="cuda", dtype=torch.float16) for s in SHAPES]
        pairs = zip(weights, x, strict=True)
        return [lambda n, w=w, x=x: torch.nn.functional.linear(x, w) for w, x in pairs]

    return matrix_arm("16 bits, float16 matmul", 2 * sum(n * k for n, k in SHAPES), make)


def gemlite_arm(nbits: int, tokens: int) -> Arm:
    """Return the arm of gemlite's layer: groups of 64, float16."""
    from gemlite.core import DType, GemLiteLinear

    x = inputs(tokens)

    def make(seed: int) -> list[Work]:
        works = []
        for (rows, columns), own in zip(SHAPES, x, strict=True):
            layer = GemLiteLinear(
                nbits,
                group_size=64,
                in_features=columns,
                out_features=rows,
                input_dtype=DType.FP16,
                output_dtype=DType.FP16,
            )
            codes = torch.randint(2**nbits, (rows, columns), dtype=torch.uint8, device="cuda")
            scales = torch.rand(rows * columns // 64, 1, device="cuda").half() / 100
            zeros = torch.full_like(scales, 2 ** (nbits - 1))
            layer.pack(codes, scales, zeros, None)
            works.append(lambda n, layer=layer, x=own: layer(x))
        return works

    nbytes = sum(n * k * nbits // 8 + n * k // 64 * 4 for n, k in SHAPES)
    return matrix_arm(f"{nbits} bits, gemlite", nbytes, make)


def arms(tokens: int) -> list[Arm]:
    """Return all arms, the copy first."""
    listed = [copy_arm(), float16_arm(tokens)]
    for scheme in SCHEMES:
        listed += [ours(scheme, name, tokens) for name in ("triton", "torch")]
        if find_spec("hqq"):
            listed.append(hqq_arm(scheme, tokens))
        if find_spec("gemlite") and scheme.nbits != 3:
            listed.append(gemlite_arm(scheme.nbits, tokens))
    return listed


def measure(compared: list[Arm], rounds: int, repeats: int) -> None:
    """Run all arms in every round; the first round warms up and isn't counted."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(-1, rounds):
        for arm in compared:
            start.record()
            for repeat in range(repeats):
                arm.run(number * repeats + repeat)
            end.record()
            end.synchronize()
            if number >= 0:
                arm.microseconds.append(1e3 * start.elapsed_time(end) / repeats)


def report(compared: list[Arm], tokens: int) -> None:
    """Print a table."""
    medians = {arm.name: statistics.median(arm.microseconds) for arm in compared}
    copied = compared[0].nbytes / medians[compared[0].name]  # bytes a microsecond
    print(f"\n{tokens} token(s); microseconds an expert: median (min - max)")
    for arm in compared:
        median, rate = medians[arm.name], arm.nbytes / medians[arm.name]
        print(
            f"{arm.name:28} {median:8.1f} ({min(arm.microseconds):.1f} - "
            f"{max(arm.microseconds):.1f})  {rate / 1e3:7.1f} GB/s {rate / copied:5.0%}"
            f"  {arm.copies} copies"
        )


def error(scheme: HQQ, tokens: int) -> float:
    """Return the largest error of a slice's results over the largest result, in float32."""
    from mixoff.kernels.triton.operations import multiply

    matrix = random_matrix(scheme, (512, HIDDEN), 3)
    x = torch.randn(tokens, HIDDEN, device="cuda")
    expected = x.double() @ matrix.dequantize().double().T
    product = multiply(as_packed(matrix), x).double()
    return float((product - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_kernels.py needs a GPU that CUDA can use; none is here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for scheme in SCHEMES:
        print(f"error in float32, {scheme}: {error(scheme, 4):.1e}")
    for tokens in options.tokens:
        compared = arms(tokens)
        with torch.inference_mode():
            measure(compared, options.rounds, options.repeats)
        report(compared, tokens)
        del compared
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
