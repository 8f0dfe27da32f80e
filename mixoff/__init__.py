"""Run, see and experiment with mixture-of-experts models larger than their fast memory.

Names are exported lazily: importing mixoff does nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mixoff import plots, widget
    from mixoff.builder import build_model, register
    from mixoff.cache import ExpertCache, cache_of
    from mixoff.comparison import Divergence, divergence
    from mixoff.config import OffloadConfig
    from mixoff.convert import quantize_checkpoint
    from mixoff.demo import demo_path
    from mixoff.errors import CheckpointError, ConfigError, MixoffError, TraceError
    from mixoff.evaluate import held_out_loss
    from mixoff.generate import Chat
    from mixoff.hub import push_to_hub
    from mixoff.loading import load_chat
    from mixoff.plan import plan_memory
    from mixoff.predictors import prefetcher_of
    from mixoff.prospects import Prospect, look_ahead
    from mixoff.quantization import HQQ, QuantizedTensor, Scheme, Unquantized
    from mixoff.recall import measure_recall
    from mixoff.reference import Reference, compute_reference
    from mixoff.replies import ReplyStats
    from mixoff.sampling import Sampling
    from mixoff.simulate import Replay, replay, sweep
    from mixoff.stats import CacheStats
    from mixoff.trace import Trace
    from mixoff.widget import ChatWidget

_HOME = {
    "build_model": "builder",
    "register": "builder",
    "CacheStats": "stats",
    "ExpertCache": "cache",
    "cache_of": "cache",
    "OffloadConfig": "config",
    "quantize_checkpoint": "convert",
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
    "plan_memory": "plan",
    "prefetcher_of": "predictors",
    "Prospect": "prospects",
    "look_ahead": "prospects",
    "HQQ": "quantization",
    "QuantizedTensor": "quantization",
    "Scheme": "quantization",
    "Unquantized": "quantization",
    "measure_recall": "recall",
    "Reference": "reference",
    "compute_reference": "reference",
    "ReplyStats": "replies",
    "Sampling": "sampling",
    "Replay": "simulate",
    "replay": "simulate",
    "sweep": "simulate",
    "Trace": "trace",
    "ChatWidget": "widget",
}

_MODULES = ("plots", "widget")

__all__ = [
    "HQQ",
    "CacheStats",
    "Chat",
    "ChatWidget",
    "CheckpointError",
    "ConfigError",
    "Divergence",
    "ExpertCache",
    "MixoffError",
    "OffloadConfig",
    "Prospect",
    "QuantizedTensor",
    "Reference",
    "Replay",
    "ReplyStats",
    "Sampling",
    "Scheme",
    "Trace",
    "TraceError",
    "Unquantized",
    "build_model",
    "cache_of",
    "compute_reference",
    "demo_path",
    "divergence",
    "held_out_loss",
    "load_chat",
    "look_ahead",
    "measure_recall",
    "plan_memory",
    "plots",
    "prefetcher_of",
    "push_to_hub",
    "quantize_checkpoint",
    "register",
    "replay",
    "sweep",
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
