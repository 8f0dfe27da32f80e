"""Run, see and experiment with mixture-of-experts models larger than their fast memory.

Names are exported lazily: importing mixoff does nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixoff._version import __version__

if TYPE_CHECKING:
    from mixoff import plots, widget
    from mixoff.cache.cache import ExpertCache, cache_of
    from mixoff.cache.prefetcher import prefetcher_of
    from mixoff.cache.stats import CacheStats
    from mixoff.chat.chat import Chat
    from mixoff.chat.load import load_chat
    from mixoff.chat.reply import ReplyStats
    from mixoff.chat.sampling import Sampling
    from mixoff.config import OffloadConfig
    from mixoff.convert import inflate_checkpoint, quantize_checkpoint
    from mixoff.errors import CheckpointError, ConfigError, MixoffError, TraceError
    from mixoff.hub import push_to_hub
    from mixoff.known_models import demo_data, demo_path
    from mixoff.measure.ablation import Ablation, ablations, measure_speed, whole_layers
    from mixoff.measure.divergence import Divergence, divergence
    from mixoff.measure.load_time import Load, measure_load
    from mixoff.measure.perplexity import held_out_loss
    from mixoff.measure.prediction_check import Setting, compare_speeds, record_settings
    from mixoff.measure.quality import measure_quality, schemes_of_bits
    from mixoff.measure.recall import measure_recall
    from mixoff.measure.record_texts import record_texts
    from mixoff.measure.reference import Reference, compute_reference
    from mixoff.measure.transfers import measure_transfers
    from mixoff.models.build import build_model
    from mixoff.models.quantizer import register
    from mixoff.planning.hardware import Hardware, this_hardware
    from mixoff.planning.plan import plan_memory
    from mixoff.planning.preview import Prospect, look_ahead
    from mixoff.planning.recommend import Suggestion, suggest_checkpoint
    from mixoff.quantization import HQQ, QuantizedTensor, Scheme, Unquantized
    from mixoff.simulate.machine import Link, Machine
    from mixoff.simulate.replay import Replay, replay, sweep
    from mixoff.simulate.reuse import reuse_distances
    from mixoff.simulate.speed import Guessing, measured_speed, predict_speed
    from mixoff.trace import Trace
    from mixoff.widget import ChatWidget

_HOME = {
    "Ablation": "measure.ablation",
    "ablations": "measure.ablation",
    "measure_speed": "measure.ablation",
    "whole_layers": "measure.ablation",
    "measure_quality": "measure.quality",
    "schemes_of_bits": "measure.quality",
    "Hardware": "planning.hardware",
    "this_hardware": "planning.hardware",
    "Suggestion": "planning.recommend",
    "suggest_checkpoint": "planning.recommend",
    "Load": "measure.load_time",
    "measure_load": "measure.load_time",
    "build_model": "models.build",
    "register": "models.quantizer",
    "CacheStats": "cache.stats",
    "ExpertCache": "cache.cache",
    "cache_of": "cache.cache",
    "OffloadConfig": "config",
    "inflate_checkpoint": "convert",
    "quantize_checkpoint": "convert",
    "demo_data": "known_models",
    "demo_path": "known_models",
    "Divergence": "measure.divergence",
    "divergence": "measure.divergence",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "MixoffError": "errors",
    "TraceError": "errors",
    "held_out_loss": "measure.perplexity",
    "Chat": "chat.chat",
    "load_chat": "chat.load",
    "push_to_hub": "hub",
    "Guessing": "simulate.speed",
    "measured_speed": "simulate.speed",
    "predict_speed": "simulate.speed",
    "Link": "simulate.machine",
    "Machine": "simulate.machine",
    "plan_memory": "planning.plan",
    "prefetcher_of": "cache.prefetcher",
    "Prospect": "planning.preview",
    "look_ahead": "planning.preview",
    "HQQ": "quantization",
    "QuantizedTensor": "quantization",
    "Scheme": "quantization",
    "Unquantized": "quantization",
    "measure_recall": "measure.recall",
    "measure_transfers": "measure.transfers",
    "Reference": "measure.reference",
    "compute_reference": "measure.reference",
    "ReplyStats": "chat.reply",
    "Sampling": "chat.sampling",
    "reuse_distances": "simulate.reuse",
    "Replay": "simulate.replay",
    "replay": "simulate.replay",
    "sweep": "simulate.replay",
    "record_texts": "measure.record_texts",
    "Trace": "trace",
    "ChatWidget": "widget",
    "Setting": "measure.prediction_check",
    "compare_speeds": "measure.prediction_check",
    "record_settings": "measure.prediction_check",
}

_MODULES = ("plots", "widget")

__all__ = [
    "HQQ",
    "Ablation",
    "CacheStats",
    "Chat",
    "ChatWidget",
    "CheckpointError",
    "ConfigError",
    "Divergence",
    "ExpertCache",
    "Guessing",
    "Hardware",
    "Link",
    "Load",
    "Machine",
    "MixoffError",
    "OffloadConfig",
    "Prospect",
    "QuantizedTensor",
    "Reference",
    "Replay",
    "ReplyStats",
    "Sampling",
    "Scheme",
    "Setting",
    "Suggestion",
    "Trace",
    "TraceError",
    "Unquantized",
    "__version__",
    "ablations",
    "build_model",
    "cache_of",
    "compare_speeds",
    "compute_reference",
    "demo_data",
    "demo_path",
    "divergence",
    "held_out_loss",
    "inflate_checkpoint",
    "load_chat",
    "look_ahead",
    "measure_load",
    "measure_quality",
    "measure_recall",
    "measure_speed",
    "measure_transfers",
    "measured_speed",
    "plan_memory",
    "plots",
    "predict_speed",
    "prefetcher_of",
    "push_to_hub",
    "quantize_checkpoint",
    "record_settings",
    "record_texts",
    "register",
    "replay",
    "reuse_distances",
    "schemes_of_bits",
    "suggest_checkpoint",
    "sweep",
    "this_hardware",
    "whole_layers",
    "widget",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mixoff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mixoff' has no attribute {name!r}")
    return getattr(import_module(f"mixoff.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
