"""Run, see and experiment with mixture-of-experts models larger than their fast memory.

Public names are loaded when they are first used: importing mixoff does nothing and loads no torch.
What isn't here is in its room, such as ``mixoff.measure.recall`` or ``mixoff.errors.TraceError``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixoff._version import __version__

if TYPE_CHECKING:
    from mixoff import measure as measure
    from mixoff import plots as plots
    from mixoff import policies as policies
    from mixoff import predictors as predictors
    from mixoff import quantization as quantization
    from mixoff import simulate as simulate
    from mixoff import widget as widget
    from mixoff.cache.cache import ExpertCache as ExpertCache
    from mixoff.cache.cache import cache_of as cache_of
    from mixoff.chat.chat import Chat as Chat
    from mixoff.chat.load import load_chat as load_chat
    from mixoff.config import OffloadConfig as OffloadConfig
    from mixoff.convert import quantize_checkpoint as quantize_checkpoint
    from mixoff.errors import ConfigError as ConfigError
    from mixoff.errors import MixoffError as MixoffError
    from mixoff.hub import push_to_hub as push_to_hub
    from mixoff.known_models import demo_data as demo_data
    from mixoff.known_models import demo_path as demo_path
    from mixoff.models.build import build_model as build_model
    from mixoff.models.quantizer import register as register
    from mixoff.planning.hardware import this_hardware as this_hardware
    from mixoff.planning.plan import plan_memory as plan_memory
    from mixoff.planning.preview import preview_checkpoint as preview_checkpoint
    from mixoff.planning.recommend import recommend_checkpoint as recommend_checkpoint
    from mixoff.policies import Policy as Policy
    from mixoff.predictors import Predictor as Predictor
    from mixoff.quantization import Scheme as Scheme
    from mixoff.simulate import replay as replay
    from mixoff.simulate import sweep as sweep
    from mixoff.trace import Trace as Trace
    from mixoff.widget import ChatWidget as ChatWidget

_HOME = {  # public name: the module that has it
    # run
    "build_model": "mixoff.models.build",
    "load_chat": "mixoff.chat.load",
    "Chat": "mixoff.chat.chat",
    "ChatWidget": "mixoff.widget",
    "OffloadConfig": "mixoff.config",
    "ExpertCache": "mixoff.cache.cache",
    "cache_of": "mixoff.cache.cache",
    "register": "mixoff.models.quantizer",
    "demo_path": "mixoff.known_models",
    "demo_data": "mixoff.known_models",
    # plan
    "plan_memory": "mixoff.planning.plan",
    "preview_checkpoint": "mixoff.planning.preview",
    "recommend_checkpoint": "mixoff.planning.recommend",
    "this_hardware": "mixoff.planning.hardware",
    # convert
    "quantize_checkpoint": "mixoff.convert",
    "push_to_hub": "mixoff.hub",
    "Scheme": "mixoff.quantization",
    # see
    "Trace": "mixoff.trace",
    # experiment
    "replay": "mixoff.simulate",
    "sweep": "mixoff.simulate",
    "Policy": "mixoff.policies",
    "Predictor": "mixoff.predictors",
    # errors
    "MixoffError": "mixoff.errors",
    "ConfigError": "mixoff.errors",
}
_ROOMS = ("measure", "plots", "policies", "predictors", "quantization", "simulate", "widget")

__all__ = ["__version__", *_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"mixoff.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mixoff' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
