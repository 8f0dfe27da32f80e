"""All peers get the same models, and the end of a worker is reported."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mixoff import Scheme, quantize_checkpoint
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.quantization import Unquantized

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

SERVING = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS / "peers")!r})
from worker import serve
serve(lambda number: 2.0 * number, nbytes=5)
"""
GREEDY = """
memory = bytearray(400 << 20)
print("{}")
"""


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import weights

    monkeypatch.setattr(weights, "POOL", 1 << 14)
    weights.pool.cache_clear()
    yield weights
    weights.pool.cache_clear()


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import rounds

    return rounds


def tiny_shape(weights: ModuleType, layers: int = 2) -> object:
    return weights.Shape(hidden=256, inner=512, layers=layers, vocab=64)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    shards = [read_shard(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: shard.read(name) for shard in shards for name in shard.tensors}


def test_a_model_of_random_weights_is_one_that_mixoff_converts(
    weights: ModuleType, tmp_path: Path
) -> None:
    weights.write_original(tmp_path / "original", tiny_shape(weights))
    whole = Unquantized("bfloat16")
    quantize_checkpoint(
        tmp_path / "original", tmp_path / "ours", Scheme(whole, whole), progress=False
    )
    assert open_checkpoint(tmp_path / "ours").num_layers == 2


def test_a_shallower_model_has_the_first_layers_of_the_deeper_one(
    weights: ModuleType, tmp_path: Path
) -> None:
    weights.write_original(tmp_path / "deep", tiny_shape(weights, 3))
    weights.link_original(tmp_path / "flat", tmp_path / "deep", tiny_shape(weights, 1))
    deep, flat = tensors(tmp_path / "deep"), tensors(tmp_path / "flat")
    assert {name for name in deep if ".1." not in name and ".2." not in name} == set(flat)
    assert all(torch.equal(deep[name], tensor) for name, tensor in flat.items())


def test_experts_differ_from_each_other(weights: ModuleType, tmp_path: Path) -> None:
    weights.write_original(tmp_path / "original", tiny_shape(weights, 1))
    stacked = tensors(tmp_path / "original")["model.layers.0.mlp.experts.down_proj"]
    assert len({expert.float().numpy().tobytes() for expert in stacked}) == len(stacked)


def test_blocks_of_a_quantized_pool_are_those_of_its_weights(weights: ModuleType) -> None:
    pool = np.arange(weights.POOL)
    blocks = pool.reshape(-1, weights.BLOCK)[:, 0]
    start, count = weights.POOL - 2 * weights.BLOCK, 2 * weights.POOL + weights.BLOCK
    stretch = np.concatenate([*weights.stretch(pool, count, start)])
    blocks_of_it = np.concatenate([*weights.stretch(blocks, count, start, weights.BLOCK)])
    assert len(stretch) == count
    assert stretch[:: weights.BLOCK].tolist() == blocks_of_it.tolist()


def test_rounding_to_bfloat16_is_torchs(weights: ModuleType) -> None:
    numbers = np.random.default_rng(0).standard_normal(10_000, np.float32)
    expected = torch.from_numpy(numbers).bfloat16().view(torch.int16).numpy()
    assert weights.to_bfloat16(numbers).view(np.int16).tolist() == expected.tolist()


def worker_arm(rounds: ModuleType, folder: Path, code: str) -> object:
    script = folder / "worker.py"
    script.write_text(code)
    # `Arm` joins the name to a folder, which leaves an absolute path as it is.
    return rounds.Arm("it", Path(sys.executable), str(script), {"scratch": str(folder)})


def test_a_worker_runs_the_numbers_of_each_request(rounds: ModuleType, tmp_path: Path) -> None:
    worker = rounds.Worker(worker_arm(rounds, tmp_path, SERVING), 1)
    try:
        assert worker.line() == {"nbytes": 5}
        assert worker.run(1, 1) == [2.0]
        assert worker.run(4, 3) == [8.0, 10.0, 12.0]
    finally:
        worker.close()


def test_a_failed_worker_is_reported_with_its_reason(rounds: ModuleType, tmp_path: Path) -> None:
    arm = worker_arm(rounds, tmp_path, "raise SystemExit('no such model')")
    rounds.run_once(arm, 1, None)
    assert arm.failure == "ended with 1: no such model"


def test_an_arm_without_its_environment_is_reported(rounds: ModuleType, tmp_path: Path) -> None:
    arm = rounds.Arm("it", tmp_path / "python", "worker.py", {})
    rounds.run_once(arm, 1, None)
    assert arm.failure == "no environment"


def test_a_worker_that_exceeds_the_cap_is_killed_and_reported(
    rounds: ModuleType, tmp_path: Path
) -> None:
    with rounds.capped(1 << 28) as group:
        if group is None:
            pytest.skip("no control group can be made here")
    arm = worker_arm(rounds, tmp_path, GREEDY)
    rounds.run_once(arm, 1, 200 << 20)
    assert arm.failure == "killed (out of memory)"
    assert not group.folder.exists()
