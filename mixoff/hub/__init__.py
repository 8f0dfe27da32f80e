"""The Hugging Face hub: checkpoints by name, single files of an unquantized model, uploads.

Knows names, commits, hashes and the hub's cache; nothing of tensors. Read `resolve.py` first.
"""

from mixoff.hub.card import model_card
from mixoff.hub.files import HubFiles
from mixoff.hub.metadata import HubMetadata
from mixoff.hub.push import push_to_hub
from mixoff.hub.repository import is_on_hub
from mixoff.hub.resolve import HubCheckpoint, named_checkpoint
from mixoff.hub.snapshot import cached_nbytes

__all__ = [
    "HubCheckpoint",
    "HubFiles",
    "HubMetadata",
    "cached_nbytes",
    "is_on_hub",
    "model_card",
    "named_checkpoint",
    "push_to_hub",
]
