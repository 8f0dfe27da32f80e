"""What tensors a Mixtral has. Knows its settings; nothing of how tensors are stored."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError
from mixoff.quantization import Shape

_ATTENTION = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$")


def is_attention_matrix(name: str) -> bool:
    """Return whether a tensor of this name is one of a layer's attention matrices."""
    return _ATTENTION.search(name) is not None


class Mixtral:
    """The sizes of a Mixtral, and the tensors that follow from them, under the model's names.

    Parameters
    ----------
    config
        What its ``config.json`` holds.
    source
        That file, for errors to name.
    """

    def __init__(self, config: Mapping[str, Any], source: Path) -> None:
        self._config = config
        self._source = source

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self._setting("num_hidden_layers")

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self._setting("num_local_experts")

    def expert_shapes(self) -> dict[str, Shape]:
        """Return the shapes of an expert's w1 (gate), w2 (down) and w3 (up)."""
        hidden, inner = self._setting("hidden_size"), self._setting("intermediate_size")
        return {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}

    def attention_shapes(self) -> dict[str, Shape]:
        """Return the shapes of a layer's attention matrices."""
        hidden = self._setting("hidden_size")
        heads, kv_heads = self._setting("num_attention_heads"), self._setting("num_key_value_heads")
        head_dim = self._setting("head_dim", default=hidden // heads)
        return {
            "q_proj": (heads * head_dim, hidden),
            "k_proj": (kv_heads * head_dim, hidden),
            "v_proj": (kv_heads * head_dim, hidden),
            "o_proj": (hidden, heads * head_dim),
        }

    def trunk_shapes(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of every tensor that is no expert."""
        vocab, hidden = self._setting("vocab_size"), self._setting("hidden_size")
        yield "model.embed_tokens.weight", (vocab, hidden)
        yield "model.norm.weight", (hidden,)
        if not self._config.get("tie_word_embeddings"):
            yield "lm_head.weight", (vocab, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "input_layernorm.weight", (hidden,)
            for name, shape in self.attention_shapes().items():
                yield f"{prefix}self_attn.{name}.weight", shape
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            yield prefix + "mlp.gate.weight", (self.num_experts, hidden)

    def _setting(self, name: str, default: int | None = None) -> int:
        value = self._config.get(name) or default
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{self._source}: {name}={value!r}: a Mixtral has a whole number above 0 there: "
                "fetch the checkpoint again."
            )
        return value
