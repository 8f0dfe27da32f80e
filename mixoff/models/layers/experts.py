"""A layer's experts behind a cache, in place of a model's own module. Knows routing and kernels.

T tokens, k experts a token, D hidden size.
"""

from collections.abc import Iterable
from functools import reduce
from itertools import islice

import torch
from torch import Tensor, nn

from mixoff.cache.cache import ExpertCache
from mixoff.cache.demand import ExpertStream
from mixoff.cache.prefetcher import Prefetcher
from mixoff.kernels import GatedActivation, Kernels, TorchKernels
from mixoff.models.transformers_seam import apply_gate, is_silu, mark_initialized
from mixoff.predictors.base import RoutedExperts
from mixoff.tiers.buffers import Expert

Rows = tuple[list[int], list[int]]  # the positions among its token's k, and the tokens


class OffloadedExperts(nn.Module):
    """A layer's experts, each taken from the cache when a token needs it.

    It computes nothing before `connect` was called.

    Parameters
    ----------
    experts
        The model's own module, which keeps its activation and loses its weights.
    layer
        Number of the layer among the layers that have experts.
    """

    cache: ExpertCache
    prefetcher: Prefetcher

    def __init__(self, experts: nn.Module, layer: int) -> None:
        super().__init__()
        for name in [name for name, _ in experts.named_parameters()]:
            delattr(experts, name)
        mark_initialized(experts)  # or transformers would initialize the deleted parameters
        self.experts = experts
        self.layer = layer
        self.kernels: Kernels = TorchKernels()
        self.host_kernels: Kernels = TorchKernels()

    def connect(self, cache: ExpertCache, prefetcher: Prefetcher) -> None:
        """Take experts from a cache, and let a prefetcher guess those of later layers."""
        self.cache, self.prefetcher = cache, prefetcher

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the experts' weighted sum, [T, D] and two [T, k] -> [T, D].

        Results are added in ascending order of the experts, as transformers' own ``eager`` does,
        whatever order they arrive in: the cache never changes the output. Experts that a demand
        leaves in host memory are computed there, while the device does its earlier work.
        """
        stream, rows = self._request(hidden_states, top_k_index)
        # Copied before the device has work that the copy would have to wait for.
        host_states = _on_host(hidden_states) if stream.computed else None
        if len(hidden_states) == 1:
            return self._forward_one(stream, rows, hidden_states, host_states, top_k_weights)
        results = {}
        for expert, tensors in stream:
            position, token = (torch.tensor(r, device=hidden_states.device) for r in rows[expert])
            if host_states is not None and expert in stream.computed:
                x = host_states[rows[expert][1]]
                expert_out = self._compute_on_host(tensors, x, like=hidden_states)
            else:
                expert_out = self._compute(tensors, hidden_states[token], self.kernels)
            results[expert] = token, expert_out * top_k_weights[token, position, None]
        return _sum_ascending(results.items(), torch.zeros_like(hidden_states))

    def _forward_one(
        self,
        stream: ExpertStream,
        rows: dict[int, Rows],
        x: Tensor,
        host_x: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        """Return what `forward` does for one token, in fewer steps, since nothing is gathered."""
        # A CPU's tensor can be read without waiting, and a float multiplies in one step, not three.
        shares = weights[0].tolist() if x.device.type == "cpu" else weights.T[:, :, None]
        results = {}
        for expert, tensors in stream:
            if host_x is not None and expert in stream.computed:
                expert_out = self._compute_on_host(tensors, host_x, like=x)
            else:
                expert_out = self._compute(tensors, x, self.kernels)
            (position,), _ = rows[expert]
            results[expert] = (expert_out * shares[position]).to(x.dtype)
        return reduce(torch.add, (results[expert] for expert in sorted(results)))

    def _compute_on_host(self, tensors: Expert, x: Tensor, *, like: Tensor) -> Tensor:
        """Return an expert's output for tokens in host memory, with another tensor's device."""
        expert_out = self._compute(tensors, x, self.host_kernels)
        return expert_out.to(like.device, like.dtype, non_blocking=True)

    def _compute(self, tensors: Expert, x: Tensor, kernels: Kernels) -> Tensor:
        """Return an expert's output, [t, D] -> [t, D], on the device of both."""
        gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
        return kernels.feed_forward(gate_up, down, x, self._gate)

    @property
    def _gate(self) -> GatedActivation:
        """What is computed between an expert's matrices, read off transformers' module each time.

        Hooks may be put on its activation at any time.
        """
        experts = self.experts
        return GatedActivation(apply_gate(experts), is_silu(experts))

    def _request(
        self, hidden_states: Tensor, top_k_index: Tensor
    ) -> tuple[ExpertStream, dict[int, Rows]]:
        """Demand the chosen experts, then prefetch guesses; return the experts and their rows."""
        prefetcher = self.prefetcher if self.prefetcher.experts else None
        ranked = prefetcher.look_ahead(self.layer, hidden_states) if prefetcher else {}
        indices = [top_k_index.flatten(), *(guess.flatten() for guess in ranked.values())]
        # The layer's only synchronization: the host must know which experts to fetch. Guesses ride
        # along, so that they cost none of their own.
        flat = (torch.cat(indices) if ranked else indices[0]).tolist()
        tokens, top_k = top_k_index.shape
        chosen = [flat[token * top_k : (token + 1) * top_k] for token in range(tokens)]  # [T][k]
        rows = _rows(chosen)
        chosen_by = {expert: len(places) for expert, (_, places) in rows.items()}
        stream = self.cache.acquire(self.layer, rows, tokens=tokens, chosen_by=chosen_by)
        if prefetcher is not None:  # after the demand, whose misses must be read first
            guessed = iter(flat[tokens * top_k :])
            guesses = {ahead: [*islice(guessed, len(r))] for ahead, r in ranked.items()}
            prefetcher.prefetch(self.layer, chosen, guesses)
        return stream, rows


def gates_and_experts(model: nn.Module) -> list[tuple[nn.Module, OffloadedExperts]]:
    """Return the router's gate and the experts of each block that has both, in layers' order."""
    return [
        (gate, child)
        for block in model.modules()
        if isinstance(gate := getattr(block, "gate", None), nn.Module)
        for child in block.children()
        if isinstance(child, OffloadedExperts)
    ]


def _on_host(x: Tensor) -> Tensor:
    """Return x in host memory, in float32 for float16, which is slow on CPUs."""
    return x.to("cpu", torch.float32 if x.dtype is torch.float16 else x.dtype)


def _rows(chosen: RoutedExperts) -> dict[int, Rows]:
    """Return where each expert was chosen: positions and tokens, in transformers' order."""
    rows: dict[int, Rows] = {}
    for position in range(len(chosen[0]) if chosen else 0):
        for token, experts in enumerate(chosen):
            positions, tokens = rows.setdefault(experts[position], ([], []))
            positions.append(position)
            tokens.append(token)
    return rows


def _sum_ascending(results: Iterable[tuple[int, tuple[Tensor, Tensor]]], out: Tensor) -> Tensor:
    for _, (token, expert_out) in sorted(results, key=lambda item: item[0]):
        out.index_add_(0, token, expert_out.to(out.dtype))
    return out  # [T, D]
