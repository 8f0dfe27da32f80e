"""One token's attention on a CPU, its matrices included, in two calls. Knows modules; no weights.

transformers' own code asks for each matrix by itself, and for some twenty steps between them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mixoff.attention import NAME
from mixoff.kernels import CPUKernels
from mixoff.layers import QuantizedLinear
from mixoff.quantization import PackedMatrix

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class OneTokenAttention:
    """A module of attention's ``forward`` that takes one token by itself, where it can.

    Everything else is left to the module's own: several tokens, masks, training, other
    implementations of attention, and matrices that somebody put in, or looks at by hooks.
    """

    def __init__(self, module: nn.Module, kernels: CPUKernels) -> None:
        self.module: Any = module
        self.forward: Callable[..., Any] = module.forward
        self.kernels = kernels

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention, [B, T, D] -> [B, T, D], and what weights the module's own returns."""
        matrices = None
        if attention_mask is None and hidden_states.numel() == hidden_states.shape[-1]:
            matrices = self._matrices()
        if matrices is not None:
            found = self._one(hidden_states, matrices, position_embeddings, past_key_values)
            if found is not None:
                return found, None
        given = (hidden_states, position_embeddings, attention_mask, past_key_values)
        result: tuple[Tensor, Tensor | None] = self.forward(*given, **settings)
        return result

    def _matrices(self) -> Sequence[PackedMatrix] | None:
        """Return the matrices of queries, keys, values and results; None if they aren't plain."""
        module = self.module
        if module.training or module.config._attn_implementation != NAME:
            return None
        parts = [module._modules[name] for name in _PROJECTIONS]
        return [part.matrix for part in parts] if all(map(self._is_plain, parts)) else None

    def _is_plain(self, part: nn.Module) -> bool:
        """Return whether a matrix's module does nothing but to multiply by it."""
        if type(part) is not QuantizedLinear or part.kernels is not self.kernels:
            return False
        hooks = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
        return part.bias is None and not hooks

    def _one(
        self,
        hidden_states: Tensor,
        matrices: Sequence[PackedMatrix],
        position_embeddings: tuple[Tensor, Tensor],
        past: Any,
    ) -> Tensor | None:
        """Return one token's attention; None if there are no kernels for it."""
        module, (*above, below) = self.module, matrices
        cos, sin = (part.view(-1) for part in position_embeddings)
        if len(cos) != module.head_dim:
            return None
        x = hidden_states.view(1, -1)
        found = self.kernels.queries(above, x, cos, sin, module.scaling)
        if found is None:
            return None
        query, key, value = found[0], *(part[None, :, None] for part in found[1:])  # [1, G, 1, d]
        if past is not None:
            key, value = past.update(key, value, module.layer_idx)
        out = self.kernels.attended(query, key[0], value[0], below)
        if out is None:
            out = module.o_proj(_attend(query, key, value).to(x.dtype).view(1, -1))
        return out.to(x.dtype).view(hidden_states.shape)


def use_kernels_for_one_token(module: nn.Module, kernels: CPUKernels) -> None:
    """Let a module of attention take one token by itself."""
    module.forward = OneTokenAttention(module, kernels)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(Q K^T) V in float32, [1, G, h, d], for keys and values of any kind."""
    by_group = query.view(1, key.shape[1], -1, query.shape[-1])
    given = (by_group, key.float(), value.float())
    return scaled_dot_product_attention(*given, scale=math.log(2))  # queries are times log2(e)
