"""Random weights that tests quantize."""

import torch
from torch import Tensor


def weights(rows: int = 12, columns: int = 256, seed: int = 0) -> Tensor:
    """Return weights as large as those of trained matrices, with one outlier."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    matrix[0, 0] = 0.5
    return matrix
