"""A worker that runs one expert in bitsandbytes' NF4 on a CPU."""

from copy import deepcopy
from time import perf_counter

import torch
from bitsandbytes.nn import Linear4bit
from worker import read_settings, serve


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Linear4bit:
    """Return a layer of random weights; moving it to the CPU quantizes them."""
    layer = Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.weight.data = torch.randn(rows, columns, dtype=dtype) * columns**-0.5
    return layer.to("cpu").eval()


@torch.inference_mode()
def main() -> None:
    settings = read_settings()
    torch.set_num_threads(settings["threads"])
    shapes = ((2 * settings["inner"], settings["hidden"]), (settings["hidden"], settings["inner"]))
    dtype = getattr(torch, settings["dtype"])
    first = [matrix(*shape, dtype) for shape in shapes]
    experts = [first, *(deepcopy(first) for _ in range(settings["copies"] - 1))]
    inputs = [torch.randn(settings["tokens"], columns, dtype=dtype) for _, columns in shapes]

    def run(number: int) -> float:
        began = perf_counter()
        for layer, x in zip(experts[number % len(experts)], inputs, strict=True):
            layer(x)
        return perf_counter() - began

    for number in range(len(experts)):
        run(number)  # the first call repacks the weights
    nbytes = sum(layer.weight.nbytes for layer in first)
    scales = sum(layer.weight.quant_state.absmax.nbytes for layer in first)
    serve(run, nbytes=nbytes + scales)


if __name__ == "__main__":
    main()
