"""Quantization methods, schemes, and quantized matrices. Knows nothing of files or caches.

`base.py` has what all methods share; each method is one file. Read `base.py` first.
"""

from mixoff.quantization.base import (
    PackedMatrix,
    Parts,
    PartSpecs,
    Quantization,
    QuantizedTensor,
    Shape,
    StackedRows,
)
from mixoff.quantization.hqq import HQQ
from mixoff.quantization.hqq_axis0 import HQQAxis0
from mixoff.quantization.none import Unquantized
from mixoff.quantization.scheme import METHODS, Scheme, quantization_from_dict

__all__ = [
    "HQQ",
    "METHODS",
    "HQQAxis0",
    "PackedMatrix",
    "PartSpecs",
    "Parts",
    "Quantization",
    "QuantizedTensor",
    "Scheme",
    "Shape",
    "StackedRows",
    "Unquantized",
    "quantization_from_dict",
]
