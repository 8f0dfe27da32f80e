"""The table of predictors, by the names that options take. Loads torch only to make one."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from mixoff.errors import ConfigError
from mixoff.predictors.base import Predictor

if TYPE_CHECKING:
    from torch import nn

PREDICTORS = {  # name: module and class
    "next-gate": "mixoff.predictors.next_gate:NextGate",
    "previous-token": "mixoff.predictors.history:PreviousToken",
    "frequency": "mixoff.predictors.history:Frequency",
    "markov": "mixoff.predictors.history:Markov",
}


def predictor_named(predictor: str | Predictor, gates: "Sequence[nn.Module]") -> Predictor:
    """Return the predictor of a name, made for these gates, or a predictor itself.

    Raises
    ------
    ConfigError
        If there is no predictor of that name.
    """
    if isinstance(predictor, Predictor):
        return predictor
    if predictor not in tuple(PREDICTORS):
        raise ConfigError(
            f"predictor={predictor!r}: give one of {', '.join(PREDICTORS)}, or a Predictor."
        )
    module, name = PREDICTORS[predictor].split(":")
    made: Predictor = getattr(import_module(module), name)(gates)
    return made
