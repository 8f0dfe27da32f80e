"""Writes the models of `weights` for llama.cpp, quantized or not. Runs in llama.cpp's environment.

``python gguf_files.py SETTINGS``: shape, path, and `kind`, the type of experts and attention.
Embeddings have 16 bits and the gate 32, so that tokens are routed to the same experts, and the head
has 16, as in mixoff. The pool of weights is quantized once.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from weights import (
    BLOCK,
    CONTEXT,
    EPSILON,
    POOL,
    THETA,
    Shape,
    expert_start,
    experts,
    from_bfloat16,
    non_expert,
    pool,
    stretch,
    to_bfloat16,
)

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate": "ffn_gate_inp",
}


def quantizer() -> ctypes.CDLL:
    """Return ggml's library."""
    from llama_cpp import llama_cpp as package

    library = ctypes.CDLL(str(Path(package.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantized(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Return rows of blocks of a type, as bytes [weights / 256, bytes of 256 weights]."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if kind == Kind.BF16:
        return to_bfloat16(flat).view(np.uint8).reshape(-1, 2 * BLOCK)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty(flat.size // block * size, np.uint8)
    address, target = flat.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
    counts = [ctypes.c_int64(n) for n in (0, flat.size // BLOCK, BLOCK)]
    quantizer().ggml_quantize_chunk(ctypes.c_int(kind), address, target, *counts, None)
    return out.reshape(-1, BLOCK // block * size)


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of queries or keys in the order of llama.cpp's rotary embedding."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


class GgufFile:
    """A file whose tensors are all declared before the first is written."""

    def __init__(self, path: Path, shape: Shape, kind: Kind) -> None:
        self.shape, self.kind = shape, kind
        self.writer = gguf.GGUFWriter(path, "llama")
        self.blocks = quantized(pool(shape.hidden), kind)
        self.data: list[Iterator[np.ndarray]] = []

    def write(self) -> None:
        self._facts()
        for layer in (None, *range(self.shape.layers)):
            for name, dims, bits in non_expert(self.shape, layer):
                self._small(name, dims, bits)
            if layer is not None:
                for name, dims in experts(self.shape, layer):
                    self._experts(name, dims, layer)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for pieces in self.data:
            self.writer.write_tensor_data(np.concatenate([*pieces]).reshape(-1))
        self.writer.close()

    def _facts(self) -> None:
        shape, writer = self.shape, self.writer
        writer.add_block_count(shape.layers)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.inner)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(THETA)
        writer.add_layer_norm_rms_eps(EPSILON)
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.top_k)
        writer.add_vocab_size(shape.vocab)
        writer.add_tokenizer_model("none")

    def _declare(self, name: str, dims: tuple[int, ...], kind: Kind) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(dims))
        self.writer.add_tensor_info(
            name,
            (*dims[:-1], dims[-1] // block * size) if kind != Kind.F32 else dims,
            np.dtype(np.uint8 if kind != Kind.F32 else np.float32),
            count // block * size,
            kind,
        )

    def _small(self, name: str, dims: tuple[int, ...], bits: np.ndarray) -> None:
        """Add a tensor of the non-expert parameters."""
        stem = name.removesuffix(".weight")
        prefix = ""
        if stem.startswith("model.layers."):
            _, _, layer, stem = stem.split(".", 3)
            prefix = f"blk.{layer}."
        values = from_bfloat16(bits).reshape(dims)
        if stem.endswith(("q_proj", "k_proj")):
            values = interleaved(values, dims[0] // self.shape.head_dim)
        kind = Kind.F32 if len(dims) == 1 or stem == "mlp.gate" else self.kind
        kind = Kind.BF16 if stem in ("model.embed_tokens", "lm_head") else kind
        self._declare(f"{prefix}{_NAMES[stem]}.weight", dims, kind)
        self.data.append(iter([values if kind == Kind.F32 else quantized(values, kind)]))

    def _experts(self, name: str, dims: tuple[int, ...], layer: int) -> None:
        """Add a layer's stacked experts; the joined gate and up become two tensors."""
        count = dims[1] * dims[2]
        if name.endswith("down_proj"):
            parts = {"down": (dims, 0, count)}
        else:
            half = (dims[0], dims[1] // 2, dims[2])
            parts = {"gate": (half, 0, count // 2), "up": (half, count // 2, count // 2)}
        for part, (shape, offset, size) in parts.items():
            self._declare(f"blk.{layer}.ffn_{part}_exps.weight", shape, self.kind)
            self.data.append(self._stretches(name, dims[0], offset, size))

    def _stretches(self, name: str, parts: int, offset: int, size: int) -> Iterator[np.ndarray]:
        for part in range(parts):
            start = (expert_start(self.shape, name, part) + offset) % POOL
            yield from stretch(self.blocks, size, start, BLOCK)


def main() -> None:
    settings = json.loads(sys.argv[1])
    shape, kind = Shape(**settings["shape"]), Kind[settings["kind"]]
    GgufFile(Path(settings["path"]), shape, kind).write()


if __name__ == "__main__":
    main()
