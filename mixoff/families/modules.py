"""transformers' modules that mixoff has faster ones for. Importing it loads their models' code."""

from transformers.models.mixtral.modeling_mixtral import MixtralAttention as Attention
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm as RMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter as Router

from mixoff.families.mixtral import ATTENTION_MATRICES

__all__ = ["ATTENTION_MATRICES", "Attention", "RMSNorm", "Router"]
