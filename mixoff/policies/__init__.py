"""Which expert is evicted. Pure numpy; a live cache and a replay run the same code.

Knows experts, how they were used, and slots; knows nothing of tensors, bytes or devices. A policy
is one small class (`base.py` has the contract; read `recency.py` first), named in one table
(`registry.py`). It reads `usage.py` and, if it keeps a queue or the like, its own `memory.py`.
`admission.py` picks victims by it, and `residency.py` holds a layer's residents.
"""

from mixoff.policies.admission import admit
from mixoff.policies.base import Policy
from mixoff.policies.fixed import Random, Static
from mixoff.policies.frequency import LFU
from mixoff.policies.memory import Memory
from mixoff.policies.optimal import Belady, BeladyBypass
from mixoff.policies.recency import FIFO, LRU
from mixoff.policies.registry import LIVE_POLICIES, POLICIES, policy_name, policy_named
from mixoff.policies.residency import Decision, Residency
from mixoff.policies.usage import NEVER, Array, Usage

__all__ = [
    "FIFO",
    "LFU",
    "LIVE_POLICIES",
    "LRU",
    "NEVER",
    "POLICIES",
    "Array",
    "Belady",
    "BeladyBypass",
    "Decision",
    "Memory",
    "Policy",
    "Random",
    "Residency",
    "Static",
    "Usage",
    "admit",
    "policy_name",
    "policy_named",
]
