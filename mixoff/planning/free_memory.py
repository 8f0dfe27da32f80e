"""The free memory of this machine, now. Reads the system's counters; plans nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

_LEAST_HEADROOM = 256 << 20  # bytes


@dataclass(frozen=True)
class FreeMemory:
    """The bytes that are free for a run; None where they are unknown.

    Parameters
    ----------
    host
        Free host memory.
    device
        Free memory of the device; on a CPU, the same bytes of host memory.
    """

    host: int | None
    device: int | None


def free_memory(device: str | torch.device) -> FreeMemory:
    """Return the free memory for a run on a device; unknown (None) of a device that isn't here."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return FreeMemory(host=None, device=None)  # a run on another machine is planned
    host = free_host_memory()
    if kind in ("cpu", "cuda"):
        return FreeMemory(host, free_device_memory(device) if kind == "cuda" else host)
    return FreeMemory(host, device=None)


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes of host memory that this process can still allocate without swapping.

    That is what the system has available, or less where a control group (a container) limits it.

    Parameters
    ----------
    root
        The folder that contains ``proc`` and ``sys``.
    """
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_free_in_control_groups(root)]))


def free_device_memory(device: str | torch.device) -> int:
    """Return the free bytes of a device: of a GPU's own memory, or of host memory for a CPU."""
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_memory()


def headroom(free_nbytes: int) -> int:
    """Return how many of the free bytes a plan leaves free: a tenth, at least 256 MiB.

    Allocators round sizes up, libraries keep workspaces, and other programs need memory, too.
    """
    return max(free_nbytes // 10, _LEAST_HEADROOM)


def _free_in_control_groups(root: Path) -> Iterator[int]:
    """Yield the free bytes of each control group of this process, from its own to the topmost."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:
            mount, names = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # Inside a container the path may name folders of the host that are not visible here.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            free = names.free(mount.joinpath(*parts[:depth]))
            if free is not None:
                yield free


@dataclass(frozen=True)
class _FileNames:
    """The file names of one version of control groups, and its name for reclaimable page cache."""

    limit: str
    usage: str
    droppable: str

    def free(self, group: Path) -> int | None:
        """Return the bytes that a group can still allocate, or None without a limit."""
        limit, usage = _text(group / self.limit).strip(), _text(group / self.usage).strip()
        if not (limit.isdecimal() and usage.isdecimal()):  # no limit is "max", or no file
            return None
        statistics = dict(
            line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line
        )
        # Usage counts the page cache, whose inactive part the kernel drops when memory is needed.
        return int(limit) - int(usage) + int(statistics.get(self.droppable, 0))


_VERSION_1 = _FileNames("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _FileNames("memory.max", "memory.current", "inactive_file")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux, no such control group, or no permission to read it
        return ""
