"""How much memory is free, here and now. Asks the machine; plans nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

_LEAST_HEADROOM = 256 << 20  # bytes


@dataclass(frozen=True)
class FreeMemory:
    """Bytes free for a run; None where the machine can't be asked.

    Parameters
    ----------
    host
        Free host memory.
    device
        Free memory of the device; on a CPU it is host memory, the same bytes.
    """

    host: int | None
    device: int | None


def free_memory(device: str | torch.device) -> FreeMemory:
    """Return what is free for a run on a device; nothing is known of a device that isn't here."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return FreeMemory(host=None, device=None)  # a run on some other machine is planned
    host = free_host_memory()
    if kind in ("cpu", "cuda"):
        return FreeMemory(host, free_device_memory(device) if kind == "cuda" else host)
    return FreeMemory(host, device=None)


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes of host memory that this process could still take without swapping.

    What the system has available, or less where a control group (a container) has a limit.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` lie.
    """
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, *_free_in_control_groups(root)]))


def free_device_memory(device: str | torch.device) -> int:
    """Return the bytes free on a device: a GPU's own, or the host's for a CPU."""
    device = torch.device(device)
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_memory()


def headroom(free_nbytes: int) -> int:
    """Return how many of the bytes that are free are to stay free: a tenth, 256 MiB at least.

    Allocators round up, libraries keep workspaces, and other programs come and go.
    """
    return max(free_nbytes // 10, _LEAST_HEADROOM)


def _free_in_control_groups(root: Path) -> Iterator[int]:
    """Yield what each control group leaves this process, from its own up to the topmost."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0" and not controllers:
            mount, names = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        # Inside a container the path may name folders of the host's that can't be seen.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            free = names.free(mount.joinpath(*parts[:depth]))
            if free is not None:
                yield free


@dataclass(frozen=True)
class _Names:
    """What a version of control groups calls its files, and the page cache that it could drop."""

    limit: str
    usage: str
    droppable: str

    def free(self, group: Path) -> int | None:
        limit, usage = _text(group / self.limit).strip(), _text(group / self.usage).strip()
        if not (limit.isdecimal() and usage.isdecimal()):  # no limit is "max", or no file
            return None
        statistics = dict(
            line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line
        )
        return int(limit) - int(usage) + int(statistics.get(self.droppable, 0))


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux, no such control group, or one that is closed to us
        return ""
