"""A linear layer with packed weights. Knows records and kernels, no models."""

from typing import Any

import torch
from torch import Tensor, nn

from mixoff.kernels import Kernels, TorchKernels
from mixoff.quantization import PackedMatrix
from mixoff.tiers.record import RecordLayout


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is one record of packed bytes.

    The parameter keeps the name ``weight``, with bytes for elements, so that a loader that knows
    nothing of mixoff meets a wrong shape instead of a missing name.

    Parameters
    ----------
    linear
        The model's own layer, which gives its bias and its device.
    layout
        Where the matrix's parts lie in the record.
    """

    def __init__(self, linear: nn.Linear, layout: RecordLayout) -> None:
        super().__init__()
        record = torch.empty(layout.nbytes, dtype=torch.uint8, device=linear.weight.device)
        self.weight = nn.Parameter(record, requires_grad=False)
        self.bias = linear.bias
        self.layout = layout
        self.kernels: Kernels = TorchKernels()
        self._views: tuple[Tensor, PackedMatrix] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias, [..., K] -> [..., N]."""
        y = self.kernels.matmul(self.matrix, x)
        return y if self.bias is None else y + self.bias

    @property
    def matrix(self) -> PackedMatrix:
        """The record's matrix, as views that are made again when the record was replaced."""
        record = self.weight.data
        if self._views is None or not record.is_set_to(self._views[0]):
            self._views = record, self.layout.tensors(record)["weight"]
        return self._views[1]

    def _apply(self, *args: Any, **settings: Any) -> Any:
        self._views = None  # views would keep the record's old memory alive after it moved
        return super()._apply(*args, **settings)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_views": None}  # a copy has a record of its own
