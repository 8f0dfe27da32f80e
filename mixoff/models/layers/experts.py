"""Modules that stand in for the model's own: packed linear layers, and experts behind a cache."""

from collections.abc import Iterable
from functools import reduce
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from mixoff.cache.cache import ExpertCache
from mixoff.cache.demand import ExpertStream
from mixoff.cache.prefetcher import Prefetcher
from mixoff.kernels import GatedActivation, Kernels, TorchKernels
from mixoff.predictors.base import RoutedExperts
from mixoff.tiers.buffers import Expert

# T tokens, k experts a token, D hidden size

Rows = tuple[list[int], list[int]]  # the positions among its token's k, and the tokens


class OffloadedExperts(nn.Module):
    """A layer's experts, each taken from the cache when a token needs it.

    Parameters
    ----------
    experts
        The model's own module, which keeps its activation and loses its weights.
    layer
        Number of the layer among the layers that have experts.
    """

    cache: ExpertCache  # set by the builder, once the non-expert parameters are on their device
    prefetcher: Prefetcher | None = None
    kernels: Kernels = TorchKernels()
    host_kernels: Kernels = TorchKernels()  # of the CPU, for what lies in host memory

    def __init__(self, experts: nn.Module, layer: int) -> None:
        super().__init__()
        for name in [name for name, _ in experts.named_parameters()]:
            delattr(experts, name)
        experts._is_hf_initialized = True  # type: ignore[assignment]  # or transformers misses them
        self.experts = experts
        self.layer = layer

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the experts' weighted sum, [T, D] and two [T, k] -> [T, D].

        Results are added in ascending order of the experts, as transformers' own ``eager`` does,
        whatever order they came in: the cache never changes the output. What lies in host memory
        beside the device is computed there, while the device does what it was asked for before.
        """
        arriving, rows = self._request(hidden_states, top_k_index)
        # Copied before the device has work that the copy would have to wait for.
        beside = _on_host(hidden_states) if arriving.computed else None
        if len(hidden_states) == 1:
            return self._forward_one(arriving, rows, hidden_states, beside, top_k_weights)
        results = {}
        for expert, tensors in arriving:
            position, token = (torch.tensor(r, device=hidden_states.device) for r in rows[expert])
            if beside is not None and expert in arriving.computed:
                expert_out = self._compute_beside(tensors, beside[rows[expert][1]], hidden_states)
            else:
                expert_out = self._compute(tensors, hidden_states[token], self.kernels)
            results[expert] = token, expert_out * top_k_weights[token, position, None]
        return _sum_ascending(results.items(), torch.zeros_like(hidden_states))

    def _forward_one(
        self,
        arriving: ExpertStream,
        rows: dict[int, Rows],
        x: Tensor,
        beside: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        """Return what `forward` does for one token, with fewer steps: nothing is to be gathered."""
        # On a CPU nothing has to be waited for, and a number multiplies in one step, not three.
        shares = weights[0].tolist() if x.device.type == "cpu" else weights.T[:, :, None]
        results = {}
        for expert, tensors in arriving:
            if beside is not None and expert in arriving.computed:
                expert_out = self._compute_beside(tensors, beside, x)
            else:
                expert_out = self._compute(tensors, x, self.kernels)
            (position,), _ = rows[expert]
            results[expert] = (expert_out * shares[position]).to(x.dtype)
        return reduce(torch.add, (results[expert] for expert in sorted(results)))

    def _compute_beside(self, tensors: Expert, x: Tensor, like: Tensor) -> Tensor:
        """Return what an expert makes of tokens in host memory, where and as another tensor is."""
        found = self._compute(tensors, x, self.host_kernels)
        return found.to(like.device, like.dtype, non_blocking=True)

    def _compute(self, tensors: Expert, x: Tensor, kernels: Kernels) -> Tensor:
        """Return what an expert makes of tokens, [t, D] -> [t, D], where both lie."""
        gate_up, down = tensors["gate_up_proj"], tensors["down_proj"]
        return kernels.feed_forward(gate_up, down, x, self._gate)

    @property
    def _gate(self) -> GatedActivation:
        """What stands between an expert's matrices: transformers' own, as it is now."""
        own: Any = self._modules["experts"]
        return GatedActivation(own._apply_gate, _is_plain_silu(own._modules["act_fn"]))

    def _request(
        self, hidden_states: Tensor, top_k_index: Tensor
    ) -> tuple[ExpertStream, dict[int, Rows]]:
        """Let the cache fetch what is needed, then what is guessed; return who comes for whom."""
        prefetcher = self.prefetcher
        if prefetcher is not None and not prefetcher.experts:
            prefetcher = None
        ranked = prefetcher.look_ahead(self.layer, hidden_states) if prefetcher else {}
        indices = [top_k_index.flatten(), *(guess.flatten() for guess in ranked.values())]
        # The layer's one sync: the host must know what to fetch.
        flat = (torch.cat(indices) if ranked else indices[0]).tolist()
        tokens, top_k = top_k_index.shape
        chosen = [flat[token * top_k : (token + 1) * top_k] for token in range(tokens)]  # [T][k]
        rows = _rows(chosen)
        chosen_by = {expert: len(places) for expert, (_, places) in rows.items()}
        arriving = self.cache.acquire(self.layer, rows, tokens=tokens, chosen_by=chosen_by)
        if prefetcher is not None:
            guessed = iter(flat[tokens * top_k :])
            guesses = {ahead: [*islice(guessed, len(r))] for ahead, r in ranked.items()}
            prefetcher.prefetch(self.layer, chosen, guesses)
        return arriving, rows


def _is_plain_silu(activation: nn.Module) -> bool:
    """Return whether an activation is silu, and nobody looks at it."""
    hooks = activation._forward_hooks or activation._forward_pre_hooks
    return type(activation) in (nn.SiLU, SiLUActivation) and not hooks


def _on_host(x: Tensor) -> Tensor:
    """Return x in host memory, and in float32 for float16, in which CPUs are slow."""
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
