"""Router and norms of one token on a CPU, each in one call of a kernel. Knows modules.

transformers' own take six and eight steps of PyTorch, each of which looks for its code and data in
caches that the weights have just passed through.
"""

from torch import Tensor

from mixoff.families.modules import RMSNorm, Router
from mixoff.kernels import cpu_module


class OneTokenRouter(Router):
    """A router with a kernel for one token; several are computed by transformers' own code."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [T, E], and shares and experts of the largest [T, k], of [..., D]."""
        routed: tuple[Tensor, Tensor, Tensor]
        kernels = cpu_module("router_norm")
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            routed = super().forward(hidden_states)  # type: ignore[no-untyped-call]
        else:
            routed = kernels.route(hidden_states, self.weight, self.top_k)
        return routed


class OneTokenNorm(RMSNorm):
    """A norm with a kernel for one token; several are computed by transformers' own code."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalized states, [..., D]."""
        normalized: Tensor
        kernels = cpu_module("router_norm")
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            normalized = super().forward(hidden_states)
        else:
            normalized = kernels.normalize(hidden_states, self.weight, self.variance_epsilon)
        return normalized
