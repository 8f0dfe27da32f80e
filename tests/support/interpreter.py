"""Without a GPU, Triton's kernels run in its interpreter. Import this before anything that may
import triton, which asks once.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
