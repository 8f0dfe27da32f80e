"""How many threads kernels should take while records come: one for each core, or one fewer.

Run it from the root of a clone, on a machine that does nothing else:
``.venv/bin/python benchmarks/threads.py``. It writes 0.8 GB of records into ``--folder`` and
deletes them at the end.

A token goes through 4 layers of 8 experts and 4 slots. A layer computes a resident matrix, as
attention does, and two experts of 4 bits straight from their packed weights, 25 MB each, with
mixoff's kernels; its experts stay those of the token before with a probability of 0.6, and the next
layer's are guessed rightly, so that the transfer thread has work beside compute. Records come from
disk past the page cache ("direct"), through it, where each token begins with a file that was
dropped ("uncached") or is there ("cached"), or are copied within host memory ("memory"); "none" has
a slot for each, and nothing moves.

Arms: *all* threads that torch is set to (``--threads``, by default one for each core); *one fewer*;
*while moving*, one fewer whenever a transfer is under way as an expert begins; and *mixoff*, what
the package does: one fewer while a read through the page cache is under way. All go through
the same demands, and take turns, round by round. Printed: milliseconds a token, median, least and
most of the rounds, and the median of the round's ratio to *all*.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kernels import random_matrix
from mixoff import ExpertCache
from mixoff.kernels import kernels_named
from mixoff.quantization import HQQ
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader, Pread
from mixoff.tiers.queue import Transfers
from mixoff.tiers.record import RecordLayout, RecordLocation
from mixoff.tiers.store import RecordStore

LAYERS, EXPERTS, SLOTS = 4, 8, 4
HIDDEN, INNER = 2048, 7168
SCHEME = HQQ(4, 64)
SHAPES = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
LAYOUT = RecordLayout(SCHEME, tuple(SHAPES.items()))
WAYS = ("none", "direct", "uncached", "cached", "memory")
ARMS = ("all", "one fewer", "while moving", "mixoff")
STAYS = 0.6

Token = list[tuple[int, ...]]  # the experts of each layer


def demands(tokens: int) -> list[Token]:
    """Return what each token needs of each layer."""
    chance = random.Random(0)
    made: list[Token] = []
    for _ in range(tokens):
        before = made[-1] if made else [()] * LAYERS
        made.append(
            [
                old if old and chance.random() < STAYS else tuple(chance.sample(range(EXPERTS), 2))
                for old in before
            ]
        )
    return made


def write_records(folder: Path) -> list[list[RecordLocation]]:
    """Write a file of records for each layer, all alike."""
    matrices = {name: random_matrix(SCHEME, shape, 0) for name, shape in SHAPES.items()}
    record = LAYOUT.pack(matrices).numpy()
    record = np.pad(record, (0, LAYOUT.stride - len(record)))
    for layer in range(LAYERS):
        with (folder / f"layer-{layer}").open("wb") as file:
            for _ in range(EXPERTS):
                file.write(record.data)
            file.flush()
            os.fsync(file.fileno())
    return [
        [
            RecordLocation(folder / f"layer-{layer}", e * LAYOUT.stride, LAYOUT.nbytes, None)
            for e in range(EXPERTS)
        ]
        for layer in range(LAYERS)
    ]


class Run:
    """A way for records to come, and the model that needs them."""

    def __init__(self, locations: list[list[RecordLocation]], way: str) -> None:
        self.way = way
        self._files = sorted({place.file for layer in locations for place in layer})
        self._memory = np.fromfile(self._files[0], np.uint8) if way == "memory" else None
        reader = DiskReader("direct" if way == "direct" else "buffered", pread=self._pread(way))
        mover = CpuMover(RecordStore(locations, reader), Transfers(), nbytes=LAYOUT.nbytes)
        slots = EXPERTS if way == "none" else SLOTS
        layouts = [[LAYOUT] * EXPERTS] * LAYERS
        self.cache = ExpertCache(mover, layouts, slots_per_layer=slots)
        self._transfers = mover.transfers
        self._kernels = kernels_named("cpu")
        self._attention = random_matrix(HQQ(4, 64), (2 * HIDDEN, HIDDEN), 1)
        self._x = torch.randn(1, HIDDEN)

    def _pread(self, way: str) -> Pread | None:
        def copied(_: int, buffers: Sequence[memoryview], offset: int) -> int:
            found = self._memory[offset : offset + len(buffers[0])]
            np.copyto(np.frombuffer(buffers[0], np.uint8)[: len(found)], found)
            return len(found)

        return copied if way == "memory" else None

    def seconds(self, tokens: list[Token], arm: str, threads: int) -> float:
        """Return what all tokens took."""
        torch.set_num_threads(threads - (arm == "one fewer"))
        self._kernels.reserved_threads = (
            self.cache.reserved_threads if arm == "mixoff" else lambda: 0
        )
        began = time.perf_counter()
        for token in tokens:
            if self.way == "uncached":
                self._drop()
            for layer, experts in enumerate(token):
                self._compute_layer(token, layer, experts, threads if arm == ARMS[2] else None)
        return time.perf_counter() - began

    def _compute_layer(
        self, token: Token, layer: int, experts: Sequence[int], threads: int | None
    ) -> None:
        self._let(threads)
        self._kernels.matmul(self._attention, self._x)
        arriving = self.cache.acquire(layer, experts)
        if layer + 1 < LAYERS:
            self.cache.prefetch(layer + 1, token[layer + 1])
        for _, tensors in arriving:
            self._let(threads)
            gate, up = self._kernels.matmul(tensors["gate_up_proj"], self._x).chunk(2, dim=-1)
            self._kernels.matmul(tensors["down_proj"], torch.nn.functional.silu(gate) * up)

    def _let(self, threads: int | None) -> None:
        """Let kernels have one thread fewer while something moves."""
        if threads is not None:
            moving = self._transfers._running or self._transfers._queue
            torch.set_num_threads(threads - 1 if moving else threads)

    def _drop(self) -> None:
        for path in self._files:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(folder: Path, tokens: int, rounds: int, threads: int, ways: Sequence[str]) -> None:
    """Measure and print."""
    locations, needed = write_records(folder), demands(tokens)
    print("way        arm             ms/token  [least, most]   over all")
    for way in ways:
        run = Run(locations, way)
        took: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for turn in range(rounds + 1):  # the first one warms up
            for arm in ARMS:
                seconds = run.seconds(needed, arm, threads)
                took[arm] += [1e3 * seconds / tokens] if turn else []
        stats = run.cache.stats()
        run.cache.close()
        for arm, ms in took.items():
            ratio = statistics.median(a / b for a, b in zip(ms, took["all"], strict=True))
            middle, least, most = statistics.median(ms), min(ms), max(ms)
            print(f"{way:10} {arm:14} {middle:9.1f}  [{least:.1f}, {most:.1f}]  {ratio:9.3f}")
        print(
            f"           hit rate {stats.hit_rate:.2f}, waited {stats.wait_ns / 1e9:.1f} s in all"
        )


def main() -> None:
    """Take options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mixoff-threads-", dir=options.folder))
    try:
        measure(folder, options.tokens, options.rounds, max(2, options.threads), options.ways)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
