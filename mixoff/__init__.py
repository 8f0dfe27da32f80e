"""Run, see and experiment with mixture-of-experts models larger than their fast memory.

Names are exported lazily: importing mixoff does nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixoff import plots, tables, widget
    from mixoff.bandwidth import measure_transfers
    from mixoff.builder import build_model, register
    from mixoff.cache import ExpertCache, cache_of
    from mixoff.comparison import Divergence, divergence
    from mixoff.config import OffloadConfig
    from mixoff.convert import inflate_checkpoint, quantize_checkpoint
    from mixoff.demo import demo_data, demo_path
    from mixoff.errors import CheckpointError, ConfigError, MixoffError, TraceError
    from mixoff.evaluate import held_out_loss
    from mixoff.generate import Chat
    from mixoff.hardware import Hardware, this_hardware
    from mixoff.hub import push_to_hub
    from mixoff.latency import Guessing, measured_speed, predict_speed
    from mixoff.loading import load_chat
    from mixoff.machine import Link, Machine
    from mixoff.plan import plan_memory
    from mixoff.predictors import prefetcher_of
    from mixoff.prospects import Prospect, look_ahead
    from mixoff.quality import measure_quality, schemes_of_bits
    from mixoff.quantization import HQQ, QuantizedTensor, Scheme, Unquantized
    from mixoff.recall import measure_recall
    from mixoff.reference import Reference, compute_reference
    from mixoff.replies import ReplyStats
    from mixoff.reuse import reuse_distances
    from mixoff.sampling import Sampling
    from mixoff.simulate import Replay, replay, sweep
    from mixoff.speed import Ablation, ablations, measure_speed, whole_layers
    from mixoff.startup import Load, measure_load
    from mixoff.stats import CacheStats
    from mixoff.suggestion import Suggestion, suggest_checkpoint
    from mixoff.texts import record_texts
    from mixoff.trace import Trace
    from mixoff.trials import Setting, compare_speeds, record_settings
    from mixoff.widget import ChatWidget

_HOME = {
    "Ablation": "speed",
    "ablations": "speed",
    "measure_speed": "speed",
    "whole_layers": "speed",
    "measure_quality": "quality",
    "schemes_of_bits": "quality",
    "Hardware": "hardware",
    "this_hardware": "hardware",
    "Suggestion": "suggestion",
    "suggest_checkpoint": "suggestion",
    "Load": "startup",
    "measure_load": "startup",
    "build_model": "builder",
    "register": "builder",
    "CacheStats": "stats",
    "ExpertCache": "cache",
    "cache_of": "cache",
    "OffloadConfig": "config",
    "inflate_checkpoint": "convert",
    "quantize_checkpoint": "convert",
    "demo_data": "demo",
    "demo_path": "demo",
    "Divergence": "comparison",
    "divergence": "comparison",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "MixoffError": "errors",
    "TraceError": "errors",
    "held_out_loss": "evaluate",
    "Chat": "generate",
    "load_chat": "loading",
    "push_to_hub": "hub",
    "Guessing": "latency",
    "measured_speed": "latency",
    "predict_speed": "latency",
    "Link": "machine",
    "Machine": "machine",
    "plan_memory": "plan",
    "prefetcher_of": "predictors",
    "Prospect": "prospects",
    "look_ahead": "prospects",
    "HQQ": "quantization",
    "QuantizedTensor": "quantization",
    "Scheme": "quantization",
    "Unquantized": "quantization",
    "measure_recall": "recall",
    "measure_transfers": "bandwidth",
    "Reference": "reference",
    "compute_reference": "reference",
    "ReplyStats": "replies",
    "Sampling": "sampling",
    "reuse_distances": "reuse",
    "Replay": "simulate",
    "replay": "simulate",
    "sweep": "simulate",
    "record_texts": "texts",
    "Trace": "trace",
    "ChatWidget": "widget",
    "Setting": "trials",
    "compare_speeds": "trials",
    "record_settings": "trials",
}

_MODULES = ("plots", "tables", "widget")

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
    "tables",
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
