"""Budgets in bytes, turned into numbers of experts for each tier. Knows no files or devices."""

from dataclasses import dataclass
from typing import Literal

from mixoff.config import HostTier, OffloadConfig
from mixoff.errors import ConfigError
from mixoff.planning.free_memory import FreeMemory, headroom
from mixoff.units import format_nbytes, parse_budget

PlannedTier = HostTier | Literal["none"]


@dataclass(frozen=True)
class Needs:
    """The bytes that a run takes under any budget, and the bytes of one expert.

    Parameters
    ----------
    non_expert, kv_cache, workspace, staging, bounce
        Bytes, as in `mixoff.planning.plan.MemoryPlan`.
    buffer
        Bytes of a buffer that is large enough for any expert.
    layers, experts_per_layer, context
        Counts: layers, experts in each, and tokens in the KV cache.
    on_gpu
        Whether the device has memory of its own; a CPU's memory is host memory.
    """

    non_expert: int
    kv_cache: int
    workspace: int
    staging: int
    bounce: int
    buffer: int
    layers: int
    experts_per_layer: int
    context: int
    on_gpu: bool

    @property
    def experts(self) -> int:
        """The number of the model's experts."""
        return self.layers * self.experts_per_layer

    def device_nbytes(self, slots_per_layer: int) -> int:
        """Return the bytes that the device holds with this many slots in each layer."""
        slots = slots_per_layer * self.layers * self.buffer
        return self.non_expert + self.kv_cache + self.workspace + self.staging + slots

    def device_parts(self) -> str:
        """Return the sizes of all that is on the device beside slots, as text for a message."""
        return (
            f"the non-expert parameters take {format_nbytes(self.non_expert)}, "
            f"the KV cache of {self.context} tokens {format_nbytes(self.kv_cache)}, "
            f"the workspace {format_nbytes(self.workspace)}, "
            f"staging {format_nbytes(self.staging)}"
        )


@dataclass(frozen=True)
class HostBudget:
    """The records that host memory keeps: `buffers` of them, `nbytes` in all."""

    kind: PlannedTier
    buffers: int
    nbytes: int


def fit_slots(offload: OffloadConfig, needs: Needs, free: FreeMemory) -> int:
    """Return the slots of each layer: the number set, or as many as fit the device's budget.

    Raises
    ------
    ConfigError
        If the budget has no room for one slot in each layer.
    """
    if offload.device_memory is None:
        return offload.slots_per_layer(needs.experts_per_layer)
    budget = parse_budget(offload.device_memory)
    if budget is None:
        budget = max(0, _less_headroom("device_memory", free.device))
    fit = (budget - needs.device_nbytes(0)) // (needs.layers * needs.buffer)
    if fit < 1:
        least = needs.device_nbytes(1)
        raise ConfigError(
            f"device_memory={offload.device_memory!r} ({format_nbytes(budget)}): "
            f"{needs.device_parts()}, and one slot in each of {needs.layers} layers "
            f"{format_nbytes(needs.layers * needs.buffer)}: {format_nbytes(least)} in all, "
            f"{format_nbytes(least - budget)} too much: give {least} bytes or more, "
            "or plan a shorter context or fewer staging buffers."
        )
    return min(fit, needs.experts_per_layer)


def fit_host(
    offload: OffloadConfig, needs: Needs, slots_per_layer: int, free: FreeMemory
) -> HostBudget:
    """Return the records that host memory keeps of experts that have no slot.

    Raises
    ------
    ConfigError
        If the budget is smaller than a record, or the host tier that is set can't be used.
    """
    budget = parse_budget(offload.host_memory)
    _check_host_tier(offload, needs, budget)
    outside = needs.experts - needs.layers * slots_per_layer
    if budget is None:
        # On a CPU the slots are in host memory, too: the same bytes are not counted as free twice.
        taken = needs.bounce if needs.on_gpu else needs.device_nbytes(slots_per_layer)
        budget = max(0, _less_headroom("host_memory", free.host) - taken)
    elif outside and 0 < budget < needs.buffer:
        raise ConfigError(
            f"host_memory={offload.host_memory!r}: one record takes {format_nbytes(needs.buffer)}: "
            f"give {needs.buffer} bytes or more, or 0 to read each miss from disk."
        )
    fit = budget // needs.buffer
    # Where all experts fit, an inclusive tier saves the copy back of every evicted one. Where they
    # don't, an exclusive one wastes no bytes on experts that are on the device anyway.
    kind: HostTier = "inclusive" if needs.on_gpu and fit >= needs.experts else "exclusive"
    if offload.host_tier != "auto":
        kind = offload.host_tier
    buffers = min(fit, needs.experts if kind == "inclusive" else outside) if outside else 0
    _check_miss(offload, needs, buffers if outside else None)
    return HostBudget(kind if buffers else "none", buffers, buffers * needs.buffer)


def pinned_nbytes(offload: OffloadConfig, needs: Needs, host_nbytes: int, free: FreeMemory) -> int:
    """Return the bytes of host memory to pin: without a budget, at most half of the free ones.

    Raises
    ------
    ConfigError
        If there is a budget but no GPU that would read pinned memory.
    """
    budget = parse_budget(offload.pinned_memory)
    if not needs.on_gpu:
        if budget:
            raise ConfigError(
                f"pinned_memory={offload.pinned_memory!r}: memory is pinned for a GPU, and the "
                "device is not one: leave it out."
            )
        return 0
    wanted = needs.bounce + host_nbytes
    if budget is None:
        budget = wanted if free.host is None else free.host // 2
    return min(budget, wanted)


def refuse_too_much(
    offload: OffloadConfig, needs: Needs, slots_per_layer: int, host: HostBudget, free: FreeMemory
) -> None:
    """Refuse budgets whose sum exceeds the free memory, where that is known.

    Raises
    ------
    ConfigError
        If a run takes more host or device memory than is free.
    """
    device, on_host = needs.device_nbytes(slots_per_layer), host.nbytes + needs.bounce
    if not needs.on_gpu and (offload.device_memory is not None or host.nbytes):
        parts = f"{format_nbytes(device)} for slots, non-expert parameters and buffers, "
        parts += f"{format_nbytes(on_host)} for records in host memory"
        _refuse_above(free.host, device + on_host, parts)
    if needs.on_gpu and offload.device_memory is not None:
        _refuse_above(free.device, device, f"{needs.device_parts()}, slots the rest")
    if needs.on_gpu and host.nbytes:
        _refuse_above(free.host, on_host, f"{format_nbytes(host.nbytes)} for records")


def _refuse_above(free: int | None, nbytes: int, parts: str) -> None:
    if free is not None and nbytes > free:
        raise ConfigError(
            f"this run takes {format_nbytes(nbytes)} ({parts}) where {format_nbytes(free)} are "
            f"free, {format_nbytes(nbytes - free)} too much: lower device_memory or host_memory, "
            "or free some memory."
        )


def _less_headroom(name: str, free: int | None) -> int:
    if free is None:
        raise ConfigError(
            f"{name}='auto': free memory is unknown of a device that isn't here: "
            "give bytes, such as 10GiB."
        )
    return free - headroom(free)


def _check_miss(offload: OffloadConfig, needs: Needs, host_buffers: int | None) -> None:
    """Refuse to compute misses on the host where it has no records of the experts outside."""
    if offload.miss == "fetch":
        return
    if not needs.on_gpu:
        raise ConfigError(
            f"miss={offload.miss!r}: misses are computed in host memory beside a GPU, and here "
            "the device is the CPU itself: give 'fetch', or device='cuda'."
        )
    if host_buffers == 0:
        raise ConfigError(
            f"miss={offload.miss!r}: host_memory={offload.host_memory!r} keeps no record to "
            "compute from: give a budget, such as 10GiB or auto."
        )


def _check_host_tier(offload: OffloadConfig, needs: Needs, budget: int | None) -> None:
    if offload.host_tier == "auto":
        return
    if budget == 0:
        raise ConfigError(
            f"host_tier={offload.host_tier!r}: host_memory=0 keeps no records: give a budget."
        )
    if offload.host_tier == "inclusive" and not needs.on_gpu:
        raise ConfigError(
            "host_tier='inclusive': on a CPU the slots are in host memory, too, and a record "
            "would lie there twice: give 'exclusive' or 'auto'."
        )
