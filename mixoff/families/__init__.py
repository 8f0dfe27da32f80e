"""What differs between families of mixture-of-experts models. Reads no tensors.

Classes, settings and names of tensors of one family stand here and nowhere else. Read
`architecture.py` first, which has what other rooms know of a model.
"""

from mixoff.families.architecture import Architecture
from mixoff.families.registry import FAMILIES, architecture_of

__all__ = ["FAMILIES", "Architecture", "architecture_of"]
