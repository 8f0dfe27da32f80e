"""One token's attention on a CPU, as transformers' ``sdpa`` but faster. Knows heads; no weights.

Several heads of queries share one of keys and values. Where nothing is masked, transformers asks
PyTorch for each head by itself; as one block of queries they read keys and values once, and become
a matrix product: 12 times as fast for 32 heads over 8, 512 tokens and bfloat16 on two cores.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA, NAME = "sdpa", "mixoff_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that attends as transformers does by default attend by groups of heads.

    Results differ from transformers' by rounding. ``model.set_attn_implementation("sdpa")`` undoes
    it.
    """
    if model.config._attn_implementation != SDPA:
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


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

    H / G heads of queries share one of keys and values. More tokens than one, and masks that differ
    between heads, are transformers' business.
    """
    batch, heads, tokens, size = query.shape
    groups = key.shape[1]
    shared_mask = attention_mask is None or attention_mask.shape[1] == 1
    if tokens > 1 or heads == groups or not shared_mask:
        given = (module, query, key, value, attention_mask)
        result: tuple[Tensor, None] = sdpa_attention_forward(*given, scaling=scaling, **settings)
        return result
    together = query.reshape(batch, groups, heads // groups, size)
    attended = torch.nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(batch, 1, heads, size), None
