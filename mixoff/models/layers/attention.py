"""One token's attention on a CPU, its matrices included, in two calls. Knows modules, no weights.

transformers' own code calls each matrix by itself, and takes some twenty steps between them.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mixoff.families.modules import ATTENTION_MATRICES, Attention
from mixoff.kernels import CPUKernels
from mixoff.models.layers.linear import QuantizedLinear
from mixoff.models.layers.sdpa import NAME
from mixoff.models.transformers_seam import (
    any_module_has_hooks,
    attention_implementation,
    has_hooks,
)


class OneTokenAttention(Attention):
    """Attention with kernels for one token, where they apply.

    Everything else is left to transformers: several tokens, masks, training, other implementations
    of attention, and matrices that were replaced or have hooks.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention, [B, T, D] -> [B, T, D], and the weights that transformers returns."""
        projections = None
        if attention_mask is None and hidden_states.numel() == hidden_states.shape[-1]:
            projections = self._plain_projections()
        if projections is not None:
            out = self._one(hidden_states, projections, position_embeddings, past_key_values)
            if out is not None:
                return out, None
        states = (hidden_states, position_embeddings, attention_mask, past_key_values)
        result: tuple[Tensor, Tensor | None] = super().forward(*states, **settings)
        return result

    def _plain_projections(self) -> Sequence[QuantizedLinear] | None:
        """Return the layers of queries, keys, values and results, or None if one isn't plain.

        Kernels compute all of them at once, past the modules: what hooks or another module would
        add is lost then, so that any sign of it leaves the token to the modules.
        """
        if self.training or attention_implementation(self.config) != NAME:
            return None
        if any_module_has_hooks():
            return None
        projections = []
        for name in ATTENTION_MATRICES:
            part = self._modules.get(name)
            if not _is_plain(part):
                return None
            projections.append(part)
        return projections

    def _one(
        self,
        hidden_states: Tensor,
        projections: Sequence[QuantizedLinear],
        position_embeddings: tuple[Tensor, Tensor],
        past: Any,
    ) -> Tensor | None:
        """Return one token's attention; None if there are no kernels for it."""
        *above, below = projections
        kernels: Any = below.kernels
        cos, sin = (part.reshape(-1) for part in position_embeddings)
        if len(cos) != self.head_dim:
            return None
        x = hidden_states.reshape(1, -1)
        states = kernels.queries([part.matrix for part in above], x, cos, sin, self.scaling)
        if states is None:
            return None
        query, key, value = states[0], *(part[None, :, None] for part in states[1:])  # [1, G, 1, d]
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        out: Tensor | None = kernels.attended(query, key[0], value[0], below.matrix)
        if out is None:
            out = below(_attend(query, key, value).to(x.dtype).reshape(1, -1))
        return out.to(x.dtype).view(hidden_states.shape)


def _is_plain(part: nn.Module | None) -> TypeGuard[QuantizedLinear]:
    """Return whether a layer does nothing but multiply by its packed matrix, on this CPU."""
    if type(part) is not QuantizedLinear or not isinstance(part.kernels, CPUKernels):
        return False
    return part.bias is None and not has_hooks(part)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T) V in float32, [1, G, h, d], for keys and values of any type."""
    by_group = query.view(1, key.shape[1], -1, query.shape[-1])
    states = (by_group, key.float(), value.float())
    return scaled_dot_product_attention(*states, scale=math.log(2))  # queries are times log2(e)
