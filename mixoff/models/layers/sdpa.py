"""One token's attention on a CPU, as transformers' ``sdpa`` but faster. Knows heads, no weights.

Several heads of queries share one of keys and values. Where nothing is masked, transformers calls
PyTorch for each head of queries. Here a kernel reads keys and values once for several heads; what
it has no code for, a mask or some other type, PyTorch computes as one block of queries.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mixoff.kernels import attention_operations

SDPA, NAME = "sdpa", "mixoff_sdpa"


def register_attention() -> None:
    """Make `attend` known to transformers, as an attention implementation called `NAME`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Return softmax(Q K^T) V, [B, H, T, d] and two [B, G, S, d] -> [B, T, H, d].

    H / G heads of queries share one of keys and values. Several tokens, and masks that differ
    between heads, are computed by transformers' own function.
    """
    batch, heads, tokens, size = query.shape
    groups = key.shape[1]
    shared_mask = attention_mask is None or attention_mask.shape[1] == 1
    if tokens > 1 or not shared_mask:
        states = (module, query, key, value, attention_mask)
        result: tuple[Tensor, None] = sdpa_attention_forward(*states, scaling=scaling, **settings)
        return result
    scaling = size**-0.5 if scaling is None else scaling
    together = query.reshape(batch, groups, heads // groups, size)
    kernels = attention_operations() if batch == 1 and attention_mask is None else None
    if kernels is not None and kernels.attends(key[0], value[0]):
        attended = kernels.attend(together[0], key[0], value[0], scaling=scaling).to(query.dtype)
    else:
        attended = torch.nn.functional.scaled_dot_product_attention(
            together, key, value, attn_mask=attention_mask, scale=scaling
        )
    return attended.reshape(batch, 1, heads, size), None
