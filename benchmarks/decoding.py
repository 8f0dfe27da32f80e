"""A loaded model that decodes, and the time that its parts take. Shared by several benchmarks."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import MixtralAttention

from mixoff import OffloadConfig, build_model
from mixoff.cache import prefetcher_of
from mixoff.chat.kv_cache import growing_cache
from mixoff.kernels import GatedActivation, Kernels
from mixoff.models.layers.experts import OffloadedExperts

WARM_UP = 2  # tokens of each run that are not timed


class Stopwatch:
    """The total time between calls of `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


class TimedKernels(Kernels):
    """Kernels whose products of experts are timed."""

    def __init__(self, kernels: Kernels, watch: Stopwatch) -> None:
        self._kernels, self._watch = kernels, watch

    def feed_forward(self, gate_up: Any, down: Any, x: Tensor, gate: GatedActivation) -> Tensor:
        self._watch.start()
        y = self._kernels.feed_forward(gate_up, down, x, gate)
        self._watch.stop()
        return y

    def piece(self, matrix: Any, x: Tensor) -> Tensor:
        return self._kernels.piece(matrix, x)

    def workspace_nbytes(self, stored: Any, shape: Any, dtype: torch.dtype) -> int:
        return self._kernels.workspace_nbytes(stored, shape, dtype)


class Run:
    """A loaded model that decodes tokens, and stopwatches of its parts."""

    def __init__(self, folder: Path, offload: OffloadConfig, kernels: str) -> None:
        began = time.perf_counter()
        self.model, self.cache = build_model(folder, offload, kernels=kernels)
        self.load_seconds = time.perf_counter() - began
        self.reset()
        self.watches = {name: Stopwatch() for name in ("experts", "attention", "head")}
        self.chosen: list[list[Tensor]] = [[] for _ in range(self.cache.num_layers)]
        for module in self.model.modules():
            if isinstance(module, MixtralAttention):
                module.register_forward_pre_hook(self.watches["attention"].start)
                module.register_forward_hook(self.watches["attention"].stop)
            if isinstance(module, OffloadedExperts):
                module.kernels = TimedKernels(module.kernels, self.watches["experts"])
                module.register_forward_pre_hook(self._note)
        self.model.lm_head.register_forward_pre_hook(self.watches["head"].start)
        self.model.lm_head.register_forward_hook(self.watches["head"].stop)

    def _note(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self.chosen[module.layer].append(inputs[1])

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> int:
        """Read tokens, all at once, and return the most probable next one."""
        output = self.model(input_ids=torch.tensor([tokens]), past_key_values=self.past)
        return int(output.logits[0, -1].argmax())

    def reset(self) -> None:
        """Begin a new context."""
        self.past = growing_cache(self.model.config)

    def empty(self, slots: int) -> None:
        """Set the number of slots, with the residents of a new cache."""
        self.cache.resize(0)
        self.cache.resize(slots)

    def verify(self) -> None:
        """Read each expert once, so that no checksum is verified during the measurement."""
        for layer in range(self.cache.num_layers):
            for _ in self.cache.acquire(layer, range(self.cache.num_experts)):
                pass

    def forced(self, tokens: list[int]) -> dict[str, float]:
        """Return the measurements of decoding these tokens, per token, after a few to warm up."""
        for token in tokens[:WARM_UP]:
            self.read([token])
        return self._timed([token] for token in tokens[WARM_UP:])

    def greedy(self, prompt: list[int], count: int) -> tuple[list[int], dict[str, float]]:
        """Return the greedy reply to a prompt, and measurements per token, of all but the first."""
        self.reset()
        reply = [self.read(prompt)]
        measured = self._timed(([reply[-1]] for _ in range(count - 1)), reply)
        return reply, measured

    def _timed(self, steps: Iterable[list[int]], into: list[int] | None = None) -> dict[str, Any]:
        for watch in self.watches.values():
            watch.seconds = 0.0
        for layer in self.chosen:
            layer.clear()
        before, read, began, count = self.cache.stats(), bytes_read(), time.perf_counter(), 0
        for tokens in steps:
            following, count = self.read(tokens), count + 1
            if into is not None:
                into.append(following)
        seconds = (time.perf_counter() - began) / count
        stats, read = self.cache.stats() - before, bytes_read() - read
        parts = {name: watch.seconds / count for name, watch in self.watches.items()}
        parts["wait"] = stats.wait_ns / 1e9 / count
        parts["rest"] = seconds - sum(parts.values())
        guessed = stats.prefetch_used + stats.prefetch_late
        return {
            "tokens_per_s": 1 / seconds,
            "hit_rate": stats.hit_rate,
            "alike": self._alike(),
            "guessed": guessed / stats.misses if stats.misses else math.nan,
            "MB": (stats.bytes_moved + stats.bytes_wasted) / count / 1e6,
            "MB_read": read / count / 1e6,
            **{f"{name}_ms": 1e3 * part for name, part in parts.items()},
        }

    def _alike(self) -> float:
        """Return the share of a token's experts that the previous token chose, too."""
        shares = []
        for layer in self.chosen:
            sets = [set(choice.flatten().tolist()) for choice in layer]
            shares += [len(a & b) / len(b) for a, b in itertools.pairwise(sets)]
        return statistics.mean(shares) if shares else math.nan


def bytes_read() -> int:
    """Return the bytes read from disks for this process; 0 where the system doesn't count."""
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


def status(name: str) -> int:
    """Return a number of bytes in this process's status file; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)


def guess(run: Run, experts: int) -> None:
    """Set the number of experts that are guessed for the next layer, 0 for none."""
    prefetcher_of(run.model).experts = experts


def summary(rows: list[dict[str, Any]], by: list[str]) -> pd.DataFrame:
    """Return medians over the rounds, an arm a column, and the least and most tokens a second."""
    arms = pd.DataFrame(rows).groupby(by, sort=False)
    speed = arms["tokens_per_s"].agg(["median", "min", "max"]).round(3)
    speed.columns = pd.Index(["tokens/s", "min", "max"])
    return speed.join(arms.median().drop(columns="tokens_per_s").round(2)).T
