"""Mixtrals of random weights, the same for all peers. Knows numpy; runs in any peer's environment.

Every large matrix is a stretch of one pool of normal numbers. Each expert's stretch begins at its
own multiple of 256 weights, so that a pool quantized in blocks of 256 has every quantized matrix,
too. Layers are scaled so that the size of activations doesn't depend on the width. Embeddings are
larger than what layers add to them: with small ones a deep layer chooses the same experts for every
token, unlike in a trained model.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

POOL = 1 << 24  # weights
BLOCK = 256
ACTIVATION = 0.64  # standard deviation of a product with normal inputs
EMBEDDING = 0.45  # standard deviation
EPSILON, THETA, CONTEXT = 1e-5, 1e6, 4096


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mixtral.

    Parameters
    ----------
    repeats
        Whether all layers have the same experts, so that they need to be quantized only once.
        Attention and gates differ from layer to layer anyway.
    """

    hidden: int
    inner: int
    layers: int
    vocab: int = 32000
    experts: int = 8
    top_k: int = 2
    head_dim: int = 128
    repeats: bool = False

    @property
    def heads(self) -> int:
        return max(1, self.hidden // self.head_dim)

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // 4)

    @property
    def expert_weights(self) -> int:
        return 3 * self.hidden * self.inner

    def config(self) -> dict[str, Any]:
        """Return the content of transformers' config.json."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "vocab_size": self.vocab,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@cache
def pool(hidden: int) -> np.ndarray:
    """Return the pool for a width: float32 values that bfloat16 can represent."""
    numbers = np.random.default_rng(0).standard_normal(POOL, np.float32)
    return from_bfloat16(to_bfloat16(numbers * np.float32(ACTIVATION / hidden**0.5)))


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to bfloat16, as 16-bit integers."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def start_of(name: str, part: int = 0) -> int:
    """Return the index in the pool at which a matrix begins."""
    return zlib.crc32(f"{name}:{part}".encode()) % (POOL // BLOCK) * BLOCK


def stretch(values: np.ndarray, count: int, start: int, unit: int = 1) -> Iterator[np.ndarray]:
    """Yield pieces of `values` from a start on, as a ring; a row has `unit` weights."""
    remaining, first = count // unit, start // unit
    while remaining:
        piece = values[first : first + remaining]
        yield piece
        remaining -= len(piece)
        first = 0


def expert_start(shape: Shape, name: str, expert: int) -> int:
    """Return the index in the pool at which one of a layer's stacked experts begins."""
    kind = name.rsplit(".", 1)[1] if shape.repeats else name
    return start_of(kind, expert)


def _random(name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Return numbers outside the pool, for the weights that determine the routing."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape, np.float32) * np.float32(deviation)


def non_expert(
    shape: Shape, layer: int | None
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Yield name, shape and bfloat16 bits of non-expert parameters: a layer's, or all others."""
    ones = to_bfloat16(np.ones(shape.hidden, np.float32))

    def matrix(name: str, rows: int, columns: int) -> tuple[str, tuple[int, ...], np.ndarray]:
        pieces = stretch(pool(shape.hidden), rows * columns, start_of(name))
        return name, (rows, columns), to_bfloat16(np.concatenate([*pieces]))

    hidden = shape.hidden
    if layer is None:
        name, table = "model.embed_tokens.weight", (shape.vocab, hidden)
        yield name, table, to_bfloat16(_random(name, table, EMBEDDING))
        yield "model.norm.weight", (hidden,), ones
        yield matrix("lm_head.weight", *table)
        return
    prefix = f"model.layers.{layer}."
    yield f"{prefix}input_layernorm.weight", (hidden,), ones
    query, value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield matrix(f"{prefix}self_attn.q_proj.weight", query, hidden)
    yield matrix(f"{prefix}self_attn.k_proj.weight", value, hidden)
    yield matrix(f"{prefix}self_attn.v_proj.weight", value, hidden)
    yield matrix(f"{prefix}self_attn.o_proj.weight", hidden, query)
    yield f"{prefix}post_attention_layernorm.weight", (hidden,), ones
    name, gate = f"{prefix}mlp.gate.weight", (shape.experts, hidden)
    yield name, gate, to_bfloat16(_random(name, gate, hidden**-0.5))


def experts(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of a layer's stacked experts: gate and up as one, then down."""
    prefix = f"model.layers.{layer}.mlp.experts."
    yield f"{prefix}gate_up_proj", (shape.experts, 2 * shape.inner, shape.hidden)
    yield f"{prefix}down_proj", (shape.experts, shape.hidden, shape.inner)


def write_original(folder: Path, shape: Shape) -> None:
    """Write a checkpoint in transformers' own form, bfloat16, a file for each layer."""
    folder.mkdir(parents=True)
    homes = {}
    for name, layer in zip(_files(shape.layers), (None, *range(shape.layers)), strict=True):
        homes |= _write(folder / name, shape, layer)
    _write_small_files(folder, shape, homes)


def link_original(folder: Path, source: Path, shape: Shape) -> None:
    """Make a checkpoint of links to another one's first layers, which takes no disk."""
    folder.mkdir(parents=True)
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted({*weight_map.values()})[: shape.layers + 1]
    for name in files:
        (folder / name).symlink_to((source / name).resolve())
    homes = {name: file for name, file in weight_map.items() if file in files}
    _write_small_files(folder, shape, homes)


def _files(layers: int) -> list[str]:
    """Return the names of such files: the first has the parameters outside layers."""
    count = layers + 1
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _write_small_files(folder: Path, shape: Shape, homes: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))


def _write(path: Path, shape: Shape, layer: int | None) -> dict[str, str]:
    """Write a file, and return its name for each tensor."""
    small = [*non_expert(shape, layer)]
    large = [] if layer is None else [*experts(shape, layer)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dims in [*((name, dims) for name, dims, _ in small), *large]:
        end = offset + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text = text.ljust(-(-(len(text) + 8) // 4096) * 4096 - 8)
    bits = to_bfloat16(pool(shape.hidden))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, values in small:
            file.write(values.data)
        for name, dims in large:
            for part in range(shape.experts):
                for piece in stretch(bits, dims[1] * dims[2], expert_start(shape, name, part)):
                    file.write(piece.data)
    return dict.fromkeys(list(header)[1:], path.name)
