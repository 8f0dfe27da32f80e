"""Measurements with a model or a machine at hand: speed, recall, quality, load time, transfers.

Each file answers one question and returns a data frame or a small dataclass; `mixoff.plots` draws
them. What needs a recording alone is in `mixoff.simulate`.
"""

from mixoff.measure.ablation import Ablation, ablation_speed, ablations, fetch_whole_layers
from mixoff.measure.divergence import Divergence, kl_divergence
from mixoff.measure.load_time import LoadReport, load_time
from mixoff.measure.perplexity import HeldOutLoss, held_out_loss
from mixoff.measure.prediction_check import CacheSetting, check_predictions, record_with_settings
from mixoff.measure.quality import quality, schemes_of_bits
from mixoff.measure.recall import recall
from mixoff.measure.record_texts import record_texts
from mixoff.measure.reference import Reference, compute_reference
from mixoff.measure.transfers import transfers

__all__ = [
    "Ablation",
    "CacheSetting",
    "Divergence",
    "HeldOutLoss",
    "LoadReport",
    "Reference",
    "ablation_speed",
    "ablations",
    "check_predictions",
    "compute_reference",
    "fetch_whole_layers",
    "held_out_loss",
    "kl_divergence",
    "load_time",
    "quality",
    "recall",
    "record_texts",
    "record_with_settings",
    "schemes_of_bits",
    "transfers",
]
