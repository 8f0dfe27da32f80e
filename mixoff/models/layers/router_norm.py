"""A layer's small parts for one token on a CPU, by kernels: router and norms. Knows modules.

transformers' own take six and eight steps of PyTorch, each of which looks for its code and data in
caches that the weights have just gone through. These take one.
"""

from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm, MixtralTopKRouter

from mixoff.kernels import router_norm_operations


class OneTokenRouter(MixtralTopKRouter):
    """A router that takes one token by itself; several are transformers' business."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [T, E], and shares and experts of the largest [T, k], of [..., D]."""
        kernels = router_norm_operations()
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            own: tuple[Tensor, Tensor, Tensor]
            own = super().forward(hidden_states)  # type: ignore[no-untyped-call]  # transformers'
            return own
        return kernels.route(hidden_states, self.weight, self.top_k)


class OneTokenNorm(MixtralRMSNorm):
    """A norm that takes one token by itself; several are transformers' business."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return what is normalized, [..., D]."""
        kernels = router_norm_operations()
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            own: Tensor = super().forward(hidden_states)
            return own
        return kernels.normalize(hidden_states, self.weight, self.variance_epsilon)
