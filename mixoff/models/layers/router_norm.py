"""Router and norms of one token on a CPU, each in one call of a kernel. Knows modules.

transformers' own take six and eight steps of PyTorch, each of which looks for its code and data in
caches that the weights have just passed through.
"""

from torch import Tensor

from mixoff.families.modules import RMSNorm, Router
from mixoff.kernels import router_norm_operations


class OneTokenRouter(Router):
    """A router with a kernel for one token; several are computed by transformers' own code."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [T, E], and shares and experts of the largest [T, k], of [..., D]."""
        kernels = router_norm_operations()
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            own: tuple[Tensor, Tensor, Tensor]
            own = super().forward(hidden_states)  # type: ignore[no-untyped-call]  # transformers'
            return own
        return kernels.route(hidden_states, self.weight, self.top_k)


class OneTokenNorm(RMSNorm):
    """A norm with a kernel for one token; several are computed by transformers' own code."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalized states, [..., D]."""
        kernels = router_norm_operations()
        if kernels is None or not kernels.takes_whole(hidden_states, self.weight):
            own: Tensor = super().forward(hidden_states)
            return own
        return kernels.normalize(hidden_states, self.weight, self.variance_epsilon)
