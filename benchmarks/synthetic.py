"""Writes a Mixtral of any size directly in packed form, with random weights.

No weight exists in floating point at any time, except embeddings, gates, norms and head: codes and
bytes of scales are random, so a layer of Mixtral-8x7B takes a second or two instead of half a
minute of quantizing. Files are in mixoff's format, with checksums, and are written by the code of
`mixoff quantize`; one record at a time is in memory.

Codes are uniformly random, and so are scales (0.6 to 1.4 of their mean) and zeros (within 15 % of
the middle), so weights have mean 0. Their size is chosen for each matrix. Embeddings have size 1;
query, key, value, gate and up return numbers of size 1 from normalized inputs; o_proj and down
return what adds `ATTENTION` and `EXPERTS` to the variance of the residual stream in each layer.
After 32 layers the stream is 3 times as large as before, and no layer's part in it is negligible or
dominates. Router weights are random directions of size 1: over many tokens, all experts of a layer
are chosen about equally often.

The routing of a token depends on the token itself and little on those before it. So random tokens
are routed almost independently of each other, with less overlap between neighbours than in trained
models, and a token that is repeated mostly chooses the same experts again.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.convert.companions import small_files
from mixoff.convert.output_files import units_of
from mixoff.convert.partial_folder import write_durably
from mixoff.families.mixtral import Mixtral
from mixoff.quantization import HQQ, QuantizedTensor, Scheme

ATTENTION, EXPERTS = 0.05, 0.25  # variance that each adds to the residual stream in a layer
SILU_GATED = 0.6  # size of silu(a) * b for normal a and b
TOP_2 = 0.75  # size of a sum of two of size 1 whose weights add up to 1
SCALES, ZEROS = 0.4, 0.15  # half the range of scales beside their mean; of zeros beside all codes
_LEAST = -(1 << 63)  # of an int64


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mixtral; the defaults are Mixtral-8x7B's."""

    layers: int = 32
    hidden: int = 4096
    inner: int = 14336
    experts: int = 8
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "max_position_embeddings": 32768,
            "num_attention_heads": self.heads,
            "num_experts_per_tok": 2,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "vocab_size": self.vocab,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def model(self) -> Mixtral:
        """Return the names and shapes of all tensors."""
        return Mixtral(self.config(), Path("config.json"))

    def num_weights(self) -> int:
        """Return the number of weights, counted tensor by tensor."""
        model = self.model()
        non_expert = sum(math.prod(shape) for _, shape in model.non_expert_shapes())
        expert = 3 * model.intermediate_size * model.hidden_size
        return non_expert + model.num_layers * model.num_experts * expert


class Random:
    """A model's matrices, generated on demand.

    Parameters
    ----------
    shape
        The sizes of the model.
    scheme
        The scheme of attention and experts: `HQQ` for both.
    folder
        The folder of the checkpoint.
    """

    def __init__(self, shape: Shape, scheme: Scheme, folder: Path, seed: int = 0) -> None:
        self.weights: Any = self
        self.scheme = scheme
        self.config: Mapping[str, Any] = shape.config()
        self.architecture = shape.model()
        self.files = SimpleNamespace(settings=folder)  # it has no tokenizer
        self._generator = torch.Generator().manual_seed(seed)
        self._shapes = dict(self.architecture.non_expert_shapes())

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16

    def tensor(self, name: str) -> Tensor:
        """Return a non-expert tensor that isn't a matrix of attention."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        size = 1 if "embed" in name else shape[1] ** -0.5
        return torch.empty(shape).normal_(0, size, generator=self._generator).bfloat16()

    def attention(self, name: str) -> QuantizedTensor:
        """Return a matrix of attention."""
        gain = math.sqrt(ATTENTION) if "o_proj" in name else 1
        return self._matrix(self.scheme.attention, self._shapes[name], gain)

    def expert(self, layer: int, expert: int) -> Iterator[tuple[str, QuantizedTensor]]:
        """Yield gate and up as one matrix, then down."""
        inner, hidden = self.architecture.intermediate_size, self.architecture.hidden_size
        stored = self.scheme.experts_of(layer)
        yield "gate_up_proj", self._matrix(stored, (2 * inner, hidden), 1)
        gain = math.sqrt(EXPERTS) / SILU_GATED / TOP_2
        yield "down_proj", self._matrix(stored, (hidden, inner), gain)

    def files_of(self, names: Iterable[str]) -> set[str]:
        return set()

    def files_of_experts(self, layer: int) -> set[str]:
        return set()

    def _matrix(self, stored: Any, shape: tuple[int, ...], gain: float) -> QuantizedTensor:
        """Return random codes whose product with inputs of size 1 is of size `gain`."""
        assert isinstance(stored, HQQ)
        most = 2**stored.nbits - 1
        middle, spread = most / 2, ZEROS * most
        weights = (4**stored.nbits - 1) / 12 + spread**2 / 3  # variance of codes and of zeros
        scale = gain / math.sqrt(shape[1] * weights * (1 + SCALES**2 / 3))
        bounds = ((1 - SCALES) * scale, 2 * SCALES * scale, middle - spread, 2 * spread)
        parts = {}
        for name, (dtype, part) in stored.part_specs(shape).items():
            if dtype is torch.uint8:
                parts[name] = self._bytes(part)
            elif name == "pairs":  # factor and offset of scales, then of zeros
                low_s, range_s, low_z, range_z = bounds
                row = torch.tensor([range_s / 255, low_s, range_z / 255, low_z])
                parts[name] = row.expand(part)
            else:
                low, width = bounds[:2] if name == "scale" else bounds[2:]
                share = torch.empty(part).uniform_(generator=self._generator)
                parts[name] = (low + width * share).to(dtype)
        return QuantizedTensor(stored, shape, parts)

    def _bytes(self, shape: tuple[int, ...]) -> Tensor:
        words = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64)
        words.random_(_LEAST, None, generator=self._generator)
        return words.view(torch.uint8)[: math.prod(shape)].view(shape)


def write_checkpoint(shape: Shape, scheme: Scheme, folder: Path, on_progress: Any = None) -> Path:
    """Write a mixoff checkpoint of a shape into a new folder, and return the folder.

    Parameters
    ----------
    on_progress
        A function that is called repeatedly, with the number of weights that were written.
    """
    folder.mkdir(parents=True)
    matrices: Any = Random(shape, scheme, folder)
    units = units_of(matrices, on_progress or (lambda _: None))
    for unit in units:
        unit.write(folder / unit.name)
    crcs = {unit.name: read_shard(folder / unit.name).header_crc32 for unit in units}
    for name, content in small_files(matrices, units, crcs).items():
        write_durably(folder / name, content)
    return folder
