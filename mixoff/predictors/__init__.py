"""Guesses of the experts that later layers will need. Knows gates and history; moves nothing.

A predictor is one small class (`base.py` has the contract; read `next_gate.py` first), named in one
table (`registry.py`). Importing this room loads no torch.
"""

from mixoff.predictors.base import Predictor, RoutedExperts
from mixoff.predictors.registry import PREDICTORS, predictor_named

__all__ = ["PREDICTORS", "Predictor", "RoutedExperts", "predictor_named"]
