"""Peers' ways to compute one expert, each in a process and an environment of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import python_of
from peers.turns import Arm, Worker

GGML = (("Q2_K", "2 bits"), ("Q3_K", "3 bits"), ("Q4_K", "4 bits"))
PATHS = ("plain", "CPU_REPACK", "AMX")


@dataclass(frozen=True)
class Peer:
    """A worker that is ready."""

    name: str
    nbytes: int
    worker: Worker


@contextmanager
def expert_peers(
    hidden: int, inner: int, *, tokens: int, copies: int, threads: int
) -> Iterator[Sequence[Peer]]:
    """Start all that can be had here, say what can't and why, and end them after the block.

    Parameters
    ----------
    hidden, inner
        The expert's sizes.
    tokens
        How many it is given at once.
    copies
        Experts that a worker goes through, one after the other.
    """
    with TemporaryDirectory() as scratch:
        sizes = {"hidden": hidden, "inner": inner, "tokens": tokens, "copies": copies}
        common = {**sizes, "threads": threads, "scratch": scratch}
        ready: list[Peer] = []
        try:
            for arm in _arms(common):
                if not arm.python.exists():
                    print(f"{arm.name}: no environment; benchmarks/environments.py makes it")
                    continue
                worker = Worker(arm, threads, alone=True)
                try:
                    ready.append(Peer(arm.name, int(worker.line()["nbytes"]), worker))
                except ChildProcessError as error:
                    worker.close()
                    print(f"{arm.name}: {error}", flush=True)
            yield ready
        finally:
            for peer in ready:
                peer.worker.close()


def _arms(common: dict[str, object]) -> Iterator[Arm]:
    python: Path = python_of("bitsandbytes")
    for dtype in ("bfloat16", "float32"):
        told = {**common, "dtype": dtype}
        yield Arm(f"4 bits, bitsandbytes NF4 {dtype}", python, "bitsandbytes_expert.py", told)
    for kind, bits in GGML:
        for path in PATHS:
            told = {**common, "kind": kind, "path": path}
            name = f"{bits}, ggml {kind} {path}"
            yield Arm(name, python_of("llama"), "ggml_expert.py", told)
