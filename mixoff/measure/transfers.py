"""How long records take between the tiers of this machine, size by size. Knows clocks; no model."""

import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from mixoff.errors import ConfigError
from mixoff.measure.transfer_paths import CAN_DROP, FromDisk, Route, ToDevice, WithinHost
from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.queue import Transfers
from mixoff.tiers.streams import Cuda, Device
from mixoff.units import format_nbytes

if TYPE_CHECKING:
    import pandas as pd

SIZES = tuple(4096 << (2 * power) for power in range(7))  # 4 KiB to 16 MiB
_SEVERAL_BELOW = 1 << 20  # bytes: smaller records are moved several times a round
_MOST_TIMES = 8
_MS, _GB = 1e-3, 1e9


def transfers(
    device: str | torch.device | Device = "cpu",
    *,
    folder: str | Path | None = None,
    sizes: Iterable[int] = SIZES,
    in_flight: Iterable[int] = (1, 4),
    rounds: int = 7,
    seconds: float = 4.0,
) -> "pd.DataFrame":
    """Return how long records of each size take between the tiers of this machine.

    All ways and sizes take turns, round by round, so that whatever else the machine does touches
    all alike. The first round warms up and isn't counted; after `seconds` no other round begins,
    but one is always counted. Two files of random bytes, each as large as the most that is in
    flight, are written and removed.

    From disk into host memory records come with direct I/O; buffered while the file's pages are in
    the page cache, since it has just been written; and buffered after the system was asked to drop
    them. Within host memory they are copied, which mixoff itself never does where that is what it
    computes in: there it hands buffers on. With a GPU they go from host memory, pinned and
    pageable, to the device and back. What a file system or a driver refuses is left out, and
    ``attrs["notes"]`` says why. Whether a disk has a cache of its own can't be told from here.

    Parameters
    ----------
    device
        "cpu", or a GPU whose ways are measured besides.
    folder
        Where to write: on the disk that the checkpoint lies on. By default the system's folder for
        temporary files, which may lie in memory.
    sizes
        Bytes of a record.
    in_flight
        How many records are asked for at once, by as many threads.

    Returns
    -------
    pandas.DataFrame
        A row for each way, number in flight and size: source, target, method ("direct",
        "buffered", "copied", "pinned", "pageable"), page_cache (what of the file was in it),
        in_flight, nbytes (of a record), samples; ms, ms_min, ms_max: median, least and most
        milliseconds from asking until the last record in flight was there; gb_per_s,
        gb_per_s_min, gb_per_s_max: the bytes of all in flight by that time, 1e9 bytes a second.

    Raises
    ------
    ConfigError
        If a number can't be used, or the folder can't be written to.
    """
    sizes, in_flight = _checked("sizes", sizes), _checked("in_flight", in_flight)
    _checked("rounds", [rounds])
    with ExitStack() as stack:
        nbytes = align(max(sizes), PAGE) * max(in_flight)
        files = stack.enter_context(_random_files(folder, nbytes))
        several = {number: stack.enter_context(closing(Transfers(number))) for number in in_flight}
        cells = [
            _Cell(stack.enter_context(closing(route)), size, number)
            for size, number in product(sizes, in_flight)
            for route in _routes(files, size, several[number], device)
        ]
        _go_round(cells, rounds, seconds)
        return _table(cells)


class _Cell:
    """A size and a number in flight on one route, and how long records took there."""

    def __init__(self, route: Route, nbytes: int, in_flight: int) -> None:
        self.route = route
        self._nbytes = nbytes
        self._in_flight = in_flight
        self._samples: list[list[float]] = []  # seconds of each way
        self._chance = random.Random(nbytes + in_flight)  # the same records on all routes

    def measure(self) -> None:
        """Move records, small ones several times."""
        for _ in range(min(_MOST_TIMES, max(1, _SEVERAL_BELOW // self._nbytes))):
            records = self._chance.sample(range(self.route.num_records), self._in_flight)
            self._samples.append(self.route.move(records))

    def forget(self) -> None:
        """Forget what was measured."""
        self._samples.clear()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row of the table for each way."""
        moved = self._nbytes * self._in_flight / _GB
        for way, seconds in zip(self.route.ways, zip(*self._samples, strict=True), strict=True):
            middle, least, most = median(seconds), min(seconds), max(seconds)
            yield {
                **vars(way),
                "in_flight": self._in_flight,
                "nbytes": self._nbytes,
                "samples": len(seconds),
                "ms": middle / _MS,
                "ms_min": least / _MS,
                "ms_max": most / _MS,
                "gb_per_s": moved / middle,
                "gb_per_s_min": moved / most,
                "gb_per_s_max": moved / least,
            }


def _go_round(cells: list[_Cell], rounds: int, seconds: float) -> None:
    for cell in cells:
        cell.measure()
        cell.forget()
    deadline = perf_counter() + seconds
    for counted in range(rounds):
        if counted and perf_counter() > deadline:
            return
        for cell in cells:
            cell.measure()


def _table(cells: list[_Cell]) -> "pd.DataFrame":
    import pandas as pd

    refusals = [cell.route.refusal() for cell in cells]
    kept = [cell for cell, refusal in zip(cells, refusals, strict=True) if refusal is None]
    rows = [row for cell in kept for row in cell.rows()]
    keys = ["source", "target", "method", "page_cache", "in_flight", "nbytes"]
    table = pd.DataFrame(rows).sort_values(keys, ignore_index=True)
    table.attrs["notes"] = tuple(dict.fromkeys(filter(None, refusals)))
    return table


def _routes(
    files: tuple[Path, Path],
    nbytes: int,
    transfers: Transfers,
    device: str | torch.device | Device,
) -> Iterator[Route]:
    """Yield the routes that this machine has."""
    cached, uncached = files
    num_records = cached.stat().st_size // align(nbytes, PAGE)
    yield FromDisk(cached, nbytes, num_records, transfers, "buffered")
    yield FromDisk(uncached, nbytes, num_records, transfers, "direct")
    if CAN_DROP:
        yield FromDisk(uncached, nbytes, num_records, transfers, "dropped")
    yield WithinHost(nbytes, transfers)
    if isinstance(device, str | torch.device):
        if torch.device(device).type == "cpu":
            return
        device = Cuda(torch.device(device))
    for pinned in (True, False):
        yield ToDevice(cached, nbytes, transfers, device, pinned=pinned)


@contextmanager
def _random_files(folder: str | Path | None, nbytes: int) -> Iterator[tuple[Path, Path]]:
    """Write two files of random bytes: one that stays in the page cache, and one that needn't."""
    where = Path(folder or tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            place = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="mixoff-", dir=where))
            )
            files = place / "cached", place / "uncached"
            for seed, file in enumerate(files):
                _write(file, random.Random(seed).randbytes(nbytes))
        except OSError as error:
            raise ConfigError(
                f"folder={str(where)!r}: twice {format_nbytes(nbytes)} can't be written there "
                f"({error.strerror}): give another folder, or smaller sizes."
            ) from error
        yield files


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())  # or it is still on its way to the disk while that is measured


def _checked(name: str, numbers: Iterable[int]) -> list[int]:
    found = list(numbers)
    if not found or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in found):
        raise ConfigError(f"{name}={found}: give whole numbers from 1 up.")
    return found
