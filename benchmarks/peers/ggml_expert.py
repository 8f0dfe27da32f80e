"""A worker that runs one expert in ggml, through the libraries of llama-cpp-python.

Settings: `kind`, a quantization type of ggml; `path`: "plain" for weights as they are in a file,
"CPU_REPACK" or "AMX" for the layouts into which ggml repacks them at loading; sizes, tokens,
copies, threads.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from time import perf_counter
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf_files import quantized
from worker import read_settings, serve

_FOLDER = Path(llama_cpp.__file__).parent / "lib"
_F32, _CPU_DEVICE, _WORKSPACE = 0, 0, 1 << 20


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(_FOLDER / f"lib{name}.so"), ctypes.RTLD_GLOBAL)


class Ggml:
    """The functions of ggml that multiply matrices."""

    _CALLS: tuple[tuple[str, str, Any, tuple[Any, ...]], ...] = (
        ("ggml-base", "ggml_init", c_void_p, (_Init,)),
        ("ggml-base", "ggml_new_tensor_2d", c_void_p, (c_void_p, c_int, c_int64, c_int64)),
        ("ggml-base", "ggml_mul_mat", c_void_p, (c_void_p, c_void_p, c_void_p)),
        ("ggml-base", "ggml_new_graph", c_void_p, (c_void_p,)),
        ("ggml-base", "ggml_build_forward_expand", None, (c_void_p, c_void_p)),
        ("ggml-base", "ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, (c_void_p, c_void_p)),
        ("ggml-base", "ggml_backend_buft_name", c_char_p, (c_void_p,)),
        (
            "ggml-base",
            "ggml_backend_tensor_set",
            None,
            (c_void_p, c_void_p, c_size_t, c_size_t),
        ),
        ("ggml-base", "ggml_backend_graph_compute", c_int, (c_void_p, c_void_p)),
        ("ggml-base", "ggml_backend_dev_backend_reg", c_void_p, (c_void_p,)),
        ("ggml-base", "ggml_backend_dev_buffer_type", c_void_p, (c_void_p,)),
        ("ggml-base", "ggml_backend_dev_init", c_void_p, (c_void_p, c_char_p)),
        ("ggml-base", "ggml_backend_dev_supports_op", c_bool, (c_void_p, c_void_p)),
        ("ggml-base", "ggml_backend_reg_get_proc_address", c_void_p, (c_void_p, c_char_p)),
        ("ggml", "ggml_backend_dev_by_type", c_void_p, (c_int,)),
        ("ggml-cpu", "ggml_backend_cpu_set_n_threads", None, (c_void_p, c_int)),
    )

    def __init__(self, threads: int) -> None:
        libraries = {name: _library(name) for name in ("ggml-base", "ggml-cpu", "ggml")}
        for library, name, result, arguments in self._CALLS:
            call = getattr(libraries[library], name)
            call.restype, call.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_").removeprefix("backend_"), call)
        self.device = self.dev_by_type(_CPU_DEVICE)
        self.backend = self.dev_init(self.device, None)
        self.cpu_set_n_threads(self.backend, threads)

    def buffer_type(self, path: str) -> int:
        """Return the buffer type of a layout of weights.

        Raises
        ------
        SystemExit
            If this build of ggml, or this processor, doesn't have the layout.
        """
        if path == "plain":
            return self.dev_buffer_type(self.device)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.reg_get_proc_address(self.dev_backend_reg(self.device), name)
        types = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
        number = 0
        while types and types[number]:
            if self.buft_name(types[number]).decode() == path:
                return types[number]
            number += 1
        raise SystemExit(f"ggml has no {path} here")


class Expert:
    """An expert's two matrices and inputs in ggml's buffers, and the graph of both products."""

    def __init__(self, ggml: Ggml, settings: dict[str, Any], seed: int) -> None:
        kind = gguf.GGMLQuantizationType[settings["kind"]]
        shapes = (
            (2 * settings["inner"], settings["hidden"]),
            (settings["hidden"], settings["inner"]),
        )
        self.weights = ggml.init(_Init(_WORKSPACE, None, True))
        self.others = ggml.init(_Init(_WORKSPACE, None, True))
        self.graph = ggml.new_graph(self.others)
        matrices, inputs, products = [], [], []
        for rows, columns in shapes:
            matrix = ggml.new_tensor_2d(self.weights, kind, columns, rows)
            x = ggml.new_tensor_2d(self.others, _F32, columns, settings["tokens"])
            product = ggml.mul_mat(self.others, matrix, x)
            ggml.build_forward_expand(self.graph, product)
            matrices.append(matrix)
            inputs.append(x)
            products.append(product)
        ggml.alloc_ctx_tensors_from_buft(self.weights, ggml.buffer_type(settings["path"]))
        ggml.alloc_ctx_tensors_from_buft(self.others, ggml.buffer_type("plain"))
        if not all(ggml.dev_supports_op(ggml.device, product) for product in products):
            raise SystemExit(f"ggml has no {settings['path']} for {settings['kind']}")
        rng = np.random.default_rng(seed)
        self.nbytes = 0
        for matrix, x, (rows, columns) in zip(matrices, inputs, shapes, strict=True):
            weights = rng.standard_normal((256, columns), np.float32) * np.float32(columns**-0.5)
            blocks = quantized(weights, kind)
            data = np.tile(blocks.reshape(256, -1), (-(-rows // 256), 1))[:rows].copy()
            ggml.tensor_set(matrix, data.ctypes.data, 0, data.nbytes)
            numbers = rng.standard_normal((settings["tokens"], columns), np.float32)
            ggml.tensor_set(x, numbers.ctypes.data, 0, numbers.nbytes)
            self.nbytes += data.nbytes


def main() -> None:
    settings = read_settings()
    ggml = Ggml(settings["threads"])
    experts = [Expert(ggml, settings, seed) for seed in range(settings["copies"])]

    def run(number: int) -> float:
        began = perf_counter()
        ggml.graph_compute(ggml.backend, experts[number % len(experts)].graph)
        return perf_counter() - began

    run(0)
    serve(run, nbytes=experts[0].nbytes)


if __name__ == "__main__":
    main()
