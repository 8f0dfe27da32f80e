"""One token's attention on a CPU, its matrices included, in two calls. Knows modules; no weights.

transformers' own code asks for each matrix by itself, and for some twenty steps between them.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.modules.module import _has_any_global_hook
from transformers.models.mixtral.modeling_mixtral import MixtralAttention

from mixoff.kernels import CPUKernels
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.models.layers.sdpa import NAME
from mixoff.quantization import PackedMatrix

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class OneTokenAttention(MixtralAttention):
    """Attention that takes one token by itself, where it can.

    Everything else is left to transformers: several tokens, masks, training, other implementations
    of attention, and matrices that somebody put in, or looks at by hooks.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention, [B, T, D] -> [B, T, D], and what weights transformers returns."""
        matrices = None
        if attention_mask is None and hidden_states.numel() == hidden_states.shape[-1]:
            matrices = self._matrices()
        if matrices is not None:
            found = self._one(hidden_states, matrices, position_embeddings, past_key_values)
            if found is not None:
                return found, None
        given = (hidden_states, position_embeddings, attention_mask, past_key_values)
        result: tuple[Tensor, Tensor | None] = super().forward(*given, **settings)
        return result

    def _matrices(self) -> Sequence[PackedMatrix] | None:
        """Return the matrices of queries, keys, values and results; None if they aren't plain."""
        if self.training or self.config._attn_implementation != NAME:
            return None
        if _has_any_global_hook():  # type: ignore[no-untyped-call]  # torch's own
            return None
        found = []
        for name in _PROJECTIONS:
            part = self._modules.get(name)
            if not _is_plain(part):
                return None
            found.append(part.matrix)
        return found

    def _one(
        self,
        hidden_states: Tensor,
        matrices: Sequence[PackedMatrix],
        position_embeddings: tuple[Tensor, Tensor],
        past: Any,
    ) -> Tensor | None:
        """Return one token's attention; None if there are no kernels for it."""
        *above, below = matrices
        kernels: Any = self.o_proj.kernels
        cos, sin = (part.reshape(-1) for part in position_embeddings)
        if len(cos) != self.head_dim:
            return None
        x = hidden_states.reshape(1, -1)
        found = kernels.queries(above, x, cos, sin, self.scaling)
        if found is None:
            return None
        query, key, value = found[0], *(part[None, :, None] for part in found[1:])  # [1, G, 1, d]
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        out: Tensor | None = kernels.attended(query, key[0], value[0], below)
        if out is None:
            out = self.o_proj(_attend(query, key, value).to(x.dtype).reshape(1, -1))
        return out.to(x.dtype).view(hidden_states.shape)


def _is_plain(part: nn.Module | None) -> TypeGuard[QuantizedLinear]:
    """Return whether a matrix's module does nothing but to multiply by it, on this CPU."""
    if type(part) is not QuantizedLinear or not isinstance(part.kernels, CPUKernels):
        return False
    hooks = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return part.bias is None and not hooks


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T) V in float32, [1, G, h, d], for keys and values of any kind."""
    by_group = query.view(1, key.shape[1], -1, query.shape[-1])
    given = (by_group, key.float(), value.float())
    return scaled_dot_product_attention(*given, scale=math.log(2))  # queries are times log2(e)
