"""A run takes the memory that was planned for it, on a model of several times its slots."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from mixoff.checkpoints.folder import INDEX_NAME
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.mixoff_format import (
    NON_EXPERT_FILE,
    MixoffCheckpoint,
    layer_file,
)
from mixoff.checkpoints.quantization_config import quantization_settings
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.checkpoints.safetensors_write import NewTensor, write_shard
from mixoff.config import OffloadConfig
from mixoff.kernels import kernels_named
from mixoff.planning.plan import plan_memory
from mixoff.quantization import HQQ, Scheme
from mixoff.tiers.record import RecordLayout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCHEME = Scheme(attention=HQQ(4, 64), experts=HQQ(4, 64))
CONFIG = MixtralConfig(
    vocab_size=4000,
    hidden_size=2048,
    intermediate_size=4096,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=16,
    num_experts_per_tok=1,
    max_position_embeddings=1024,
    dtype="float16",
    eos_token_id=None,
)
PROMPT, REPLY = 64, 16

RUN = """
import sys
from pathlib import Path
import torch
import transformers
import mixoff.models.build
from mixoff.kernels import kernels_named
from mixoff.quantization import HQQ, QuantizedTensor

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

path, prompt, reply, kernels = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
matrix = QuantizedTensor.quantize(torch.ones(64, 64), HQQ(4, 64))
for tokens in (1, prompt):  # a compiler that kernels bring is no part of a plan, as no library is
    for dtype in (torch.float16, torch.float32):
        kernels_named(kernels).matmul(matrix, torch.ones(tokens, 64, dtype=dtype))
imports = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
offload = mixoff.OffloadConfig(offload_per_layer=12, staging=2)
model, cache = mixoff.build_model(path, offload, kernels=kernels)
ids = torch.randint(4000, (1, prompt), generator=torch.Generator().manual_seed(0))
model.generate(ids, max_new_tokens=reply, do_sample=False)
assert cache.stats().misses >= 20, "too few experts passed through the slots"
print(memory("VmHWM") - imports)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MixoffCheckpoint:
    """Write 450 MB of experts whose weights are zero, and other parameters that route at random."""
    folder = tmp_path_factory.mktemp("large")
    settings = CONFIG.to_dict() | {"quantization_config": quantization_settings(SCHEME)}
    (folder / "config.json").write_text(json.dumps(settings))
    files = {NON_EXPERT_FILE: non_expert_tensors("")}
    for layer in range(CONFIG.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        experts = {f"{prefix}mlp.experts.gate_up_proj": zero_experts()}
        files[layer_file(layer)] = experts | non_expert_tensors(prefix)
    for name, tensors in files.items():
        write_shard(folder / name, tensors, {})
    headers = {name: f"{read_shard(folder / name).header_crc32:08x}" for name in files}
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    index = {"metadata": {"header_crc32": headers}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return open_checkpoint(folder)


def zero_experts() -> NewTensor:
    hidden, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    shapes = (("gate_up_proj", (2 * inner, hidden)), ("down_proj", (hidden, inner)))
    stride, experts = RecordLayout(SCHEME.experts, shapes).stride, CONFIG.num_local_experts
    record = torch.zeros(stride, dtype=torch.uint8)
    return NewTensor(torch.uint8, (experts, stride), experts, (record for _ in range(experts)))


def non_expert_tensors(prefix: str) -> dict[str, NewTensor]:
    """Return a layer's tensors that are no experts, or those outside the layers."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in MixtralForCausalLM(CONFIG).named_parameters()}
    return {
        name: NewTensor.whole(non_expert_tensor(name, tuple(shape)))
        for name, shape in shapes.items()
        if name.startswith(prefix or ("model.embed", "model.norm", "lm_head"))
        and ".experts." not in name
    }


def non_expert_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if "self_attn" in name:
        layout = RecordLayout(SCHEME.attention, (("weight", shape),))
        return torch.zeros(layout.nbytes, dtype=torch.uint8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_peak_memory_is_the_planned_one_within_15_percent(checkpoint, kernels):
    offload, chosen = OffloadConfig(offload_per_layer=12, staging=2), kernels_named(kernels)
    plan = plan_memory(checkpoint, offload, context=PROMPT + REPLY, kernels=chosen)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(checkpoint.path), str(PROMPT), str(REPLY), kernels],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plan.disk > 3.9 * plan.slots
    assert int(done.stdout) == pytest.approx(plan.total, rel=0.15), plan
