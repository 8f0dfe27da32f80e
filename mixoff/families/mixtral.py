"""What tensors a Mixtral has. Knows its settings; nothing of how tensors are stored."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError
from mixoff.quantization import Shape
from mixoff.safe_json import quoted

_MOST = 1 << 31  # of any size: more than any tensor's side
_DTYPES = ("float32", "float16", "bfloat16")
# What transformers is given of a config.json: it sets any other on its own objects, unchecked.
SETTINGS = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "output_router_logits",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
)
# Settings at which transformers would run or fetch code, or read files that mixoff didn't check.
_CODE = (
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "kernel_config",
    "per_layer_config",
    "transformers_weights",
)


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

    def check(self) -> None:
        """Refuse settings that no Mixtral has, or that ask for code, before they are used.

        Raises
        ------
        CheckpointError
            If there is one.
        """
        if (kind := self._config.get("model_type")) != "mixtral":
            raise self._refusal("model_type", kind, "mixoff reads mixtral alone")
        for name in _CODE:
            if self._config.get(name) is not None:
                raise CheckpointError(
                    f"{self._source}: asks for code of its own ({name}), and mixoff runs none: "
                    "remove that entry if you trust the rest."
                )
        for name in ("dtype", "torch_dtype"):
            if (dtype := self._config.get(name)) not in (None, *_DTYPES):
                raise self._refusal(name, dtype, f"give one of {', '.join(_DTYPES)}")
        self._setting("max_position_embeddings")
        top_k = self._setting("num_experts_per_tok", default=2)
        if top_k > self.num_experts:
            raise self._refusal(
                "num_experts_per_tok", top_k, f"a layer has {self.num_experts} experts"
            )
        pad, vocab = self._config.get("pad_token_id"), self._setting("vocab_size")
        if pad is not None and (type(pad) is not int or not -vocab <= pad < vocab):
            raise self._refusal("pad_token_id", pad, f"the vocabulary has {vocab} tokens")
        heads, kv_heads = self._setting("num_attention_heads"), self._setting("num_key_value_heads")
        if heads % kv_heads:
            raise self._refusal("num_key_value_heads", kv_heads, f"it must divide {heads} heads")

    def _refusal(self, name: str, value: object, rule: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: {name}={quoted(value)}: {rule}.")

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

    def non_expert_shapes(self) -> Iterator[tuple[str, Shape]]:
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
        value = self._config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= _MOST:  # True is an int to isinstance
            raise self._refusal(
                name,
                value,
                f"a Mixtral has a whole number from 1 to {_MOST} there: fetch the checkpoint again",
            )
        return value
