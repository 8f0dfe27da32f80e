"""What the code before the package was divided into rooms wrote still opens and gives the same.

tests/data/made-before-the-rooms was written by the code at commit 0a9c104: a random Mixtral in
four, three and two bits; a recording of two replies of the demo model, at the end of which its
cache was resized; and that conversation. expected.json has what that code computed of them, with
plain torch on one thread.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from mixoff import Chat, OffloadConfig, Trace, build_model, demo_path, sweep

FOLDER = Path(__file__).parent / "data" / "made-before-the-rooms"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recording() -> Trace:
    return Trace.load(FOLDER / "recording.mixoff")


def test_an_old_checkpoint_gives_the_same_logits_hits_and_misses(expected):
    offload = OffloadConfig(offload_per_layer=2)
    model, cache = build_model(FOLDER / "checkpoint", offload, kernels="torch")
    ids = torch.tensor([expected["ids"]])
    with torch.inference_mode():
        logits = model(ids).logits[0]
    assert F.cross_entropy(logits[:-1], ids[0, 1:]).item() == pytest.approx(expected["loss"], 1e-5)
    assert logits[-1, :8].tolist() == pytest.approx(expected["last_logits"], abs=1e-4)
    stats = cache.stats()
    assert [*stats.hits_per_layer] == expected["hits"]
    assert [*stats.misses_per_layer] == expected["misses"]


def test_an_old_recording_gives_the_same_tables(expected, recording):
    assert recording.num_steps == expected["steps"]
    assert {*expected["columns"]} <= {*recording.to_frame().columns}
    per_layer = recording.per_layer()
    for column, values in expected["per_layer"].items():
        assert per_layer[column].astype(int).tolist() == values


def test_a_replay_of_an_old_recording_hits_as_often(expected, recording):
    policies = [*expected["hits_of_sweep"]]
    table = sweep(recording, policies, [1, 2, 4, 6, 8])
    hits = {
        policy: rows.groupby("slots")["hits"].sum().astype(int).tolist()
        for policy, rows in table.groupby("policy", sort=False)
    }
    assert hits == expected["hits_of_sweep"]


def test_an_old_conversation_is_restored(expected):
    model, _ = build_model(demo_path(), OffloadConfig(offload_per_layer=4))
    chat = Chat(model, AutoTokenizer.from_pretrained(demo_path()))
    chat.restore(FOLDER / "conversation.json")
    replies = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert replies == expected["replies"]
