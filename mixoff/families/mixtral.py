"""What a Mixtral is: its settings, and its tensors. Knows nothing of how tensors are stored.

Files have experts one by one (``block_sparse_moe.experts.E.w1``) or stacked, as the model has them
(``mlp.experts.gate_up_proj``): w1 is gate, w2 down, w3 up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixoff.families.architecture import (
    EMBEDDINGS,
    HEAD,
    LAST_NORM,
    refusal,
    transformers_refusals,
)
from mixoff.quantization import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")  # queries, keys, values, results

_MOST = 1 << 31  # of any size: more than any tensor's side
_PACKED = re.compile(rf"\.self_attn\.({'|'.join(ATTENTION_MATRICES)})\.weight$")
# The settings that transformers is given: it sets any other on its own objects, unchecked.
_SETTINGS = (
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


@dataclass(frozen=True)
class Mixtral:
    """The architecture of a Mixtral.

    Parameters
    ----------
    config
        What its ``config.json`` holds.
    source
        That file, for errors to name.

    Raises
    ------
    CheckpointError
        If a setting is none that a Mixtral has.
    """

    config: Mapping[str, Any]
    source: Path

    def __post_init__(self) -> None:
        config, source = self.config, self.source
        self._setting("max_position_embeddings")
        top_k = self._setting("num_experts_per_tok", default=2)
        if top_k > self.num_experts:
            rule = f"a layer has {self.num_experts} experts"
            raise refusal(source, "num_experts_per_tok", top_k, rule)
        pad, vocab = config.get("pad_token_id"), self._setting("vocab_size")
        if pad is not None and (type(pad) is not int or not -vocab <= pad < vocab):
            raise refusal(source, "pad_token_id", pad, f"the vocabulary has {vocab} tokens")
        heads, kv_heads = self._setting("num_attention_heads"), self._setting("num_key_value_heads")
        if heads % kv_heads:
            raise refusal(source, "num_key_value_heads", kv_heads, f"it must divide {heads} heads")

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self._setting("num_hidden_layers")

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self._setting("num_local_experts")

    @property
    def hidden_size(self) -> int:
        """Numbers of a token's state between layers."""
        return self._setting("hidden_size")

    @property
    def intermediate_size(self) -> int:
        """Rows of an expert's gate, and of its up."""
        return self._setting("intermediate_size")

    def transformers_config(self) -> "PreTrainedConfig":
        """Return the settings as transformers has them; `Architecture` has the errors."""
        from transformers import MixtralConfig
        from transformers.activations import ACT2FN
        from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

        with transformers_refusals(self.source):
            settings = {name: self.config[name] for name in _SETTINGS if name in self.config}
            config = MixtralConfig(**settings)
            MixtralRotaryEmbedding(config)
            ACT2FN[config.hidden_act]
        return config

    def layer_prefix(self, layer: int) -> str:
        """Return what the names of a layer's tensors begin with."""
        return f"model.layers.{layer}."

    def is_packed(self, name: str) -> bool:
        """Return whether a tensor of this name is a matrix of attention."""
        return _PACKED.search(name) is not None

    def non_expert_shapes(self) -> Iterator[tuple[str, Shape]]:
        """Yield name and shape of every tensor that is no expert, layer by layer."""
        vocab, hidden = self._setting("vocab_size"), self.hidden_size
        yield EMBEDDINGS, (vocab, hidden)
        yield LAST_NORM, (hidden,)
        if not self.config.get("tie_word_embeddings"):
            yield HEAD, (vocab, hidden)
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            yield prefix + "input_layernorm.weight", (hidden,)
            for name, shape in self._attention_shapes().items():
                yield f"{prefix}self_attn.{name}.weight", shape
            yield prefix + "post_attention_layernorm.weight", (hidden,)
            yield prefix + "mlp.gate.weight", (self.num_experts, hidden)

    def _attention_shapes(self) -> dict[str, Shape]:
        hidden, heads = self.hidden_size, self._setting("num_attention_heads")
        head_dim = self._setting("head_dim", default=hidden // heads)
        inner, kv_inner = heads * head_dim, self._setting("num_key_value_heads") * head_dim
        shapes = ((inner, hidden), (kv_inner, hidden), (kv_inner, hidden), (hidden, inner))
        return dict(zip(ATTENTION_MATRICES, shapes, strict=True))

    def experts_tensor(self, layer: int) -> str:
        """Return the name of the tensor that has gate and up of all of a layer's experts."""
        return f"{self.layer_prefix(layer)}mlp.experts.gate_up_proj"

    def expert_tensors(
        self, layer: int, expert: int | None = None
    ) -> dict[str, list[tuple[str, Shape]]]:
        """Return the tensors of an expert's matrices, or of a layer's stacked ones."""
        inner, hidden = self.intermediate_size, self.hidden_size
        prefix = f"{self.layer_prefix(layer)}mlp.experts."
        if expert is None:
            stacked = self.num_experts
            return {
                "gate_up_proj": [(f"{prefix}gate_up_proj", (stacked, 2 * inner, hidden))],
                "down_proj": [(f"{prefix}down_proj", (stacked, hidden, inner))],
            }
        one = f"{prefix}{expert}."
        return {
            "gate_up_proj": [(f"{one}w{n}.weight", (inner, hidden)) for n in (1, 3)],
            "down_proj": [(f"{one}w2.weight", (hidden, inner))],
        }

    def model_names(self, stored: Iterable[str]) -> list[str]:
        """Return the model's name of each stored tensor; a model without its head has no prefix."""
        names = [name.replace(".block_sparse_moe.", ".mlp.") for name in stored]
        if any(name.startswith("model.") for name in names):
            return names
        return [name if name.startswith("lm_head.") else f"model.{name}" for name in names]

    def _setting(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= _MOST:  # True is an int to isinstance
            rule = (
                f"a Mixtral has a whole number from 1 to {_MOST} there: fetch the checkpoint again"
            )
            raise refusal(self.source, name, value, rule)
        return value
