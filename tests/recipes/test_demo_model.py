"""The demo model's committed data agrees with its measurements and its recipe."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixoff import Chat, OffloadConfig, build_model, demo_path
from mixoff.known_models import demo_data
from mixoff.measure import held_out_loss
from support.tiers import tiered

ROOT = Path(__file__).resolve().parents[2]
DATA, RECIPE = ROOT / "data", ROOT / "recipes" / "demo_model"
SHIPPED = "4-bit attention, 2-bit experts"
PART_OF_THE_CORPUS = 1_000_000  # characters of each phase
# Loss on the first 2,048 tokens of heldout.txt, of transformers' own model with the checkpoint's
# dequantized weights (`dequantized` in recipes/demo_model/measure.py), windows of 1,024.
LOSS_OF_2048_TOKENS = 0.6858804


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return json.loads((DATA / "measurements.json").read_text())


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in [
        name for name, m in sys.modules.items() if str(RECIPE) in str(getattr(m, "__file__", ""))
    ]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "characters", tiered([None, PART_OF_THE_CORPUS], [PART_OF_THE_CORPUS]), ids=["all", "part"]
)
def test_half_of_the_newcomers_prompts_share_no_run_of_five_words_with_the_corpus(
    recipe, characters
):
    from build import PHASES, TRAINING_CHARACTERS, texts, words

    corpus = "".join(
        words("\n".join(texts(phase.seed, characters or TRAINING_CHARACTERS, weights)))
        for phase, weights in PHASES
    )
    prompts = (DATA / "newcomer_prompts.txt").read_text().splitlines()
    new = []
    for prompt in prompts:
        typed = words(prompt).split()
        runs = [f" {' '.join(typed[i : i + 5])} " for i in range(len(typed) - 4)]
        if runs and not any(run in corpus for run in runs):
            new.append(prompt)
    assert len(new) >= len(prompts) / 2, new


def test_the_trainer_changes_every_weight_and_writes_a_model_that_transformers_reads(
    recipe, tmp_path
):
    from train import Phase, new_model, train

    ids = np.random.default_rng(0).integers(0, 2048, 5000).astype(np.uint16)
    model = new_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, ids, ids, tmp_path, Phase(minutes=0.001, window=64, user_weight=1.0))
    trained = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    same = [name for name, p in trained.named_parameters() if torch.equal(p, before[name])]
    assert same == []


def test_the_data_readme_has_the_measured_numbers(recipe):
    from report import data_readme

    assert (DATA / "README.md").read_text() == data_readme(DATA)


def test_the_readmes_table_has_the_measured_numbers(recipe, measured):
    from report import quality_table

    assert quality_table(measured) in (DATA.parent / "README.md").read_text()


def test_the_models_replies_are_the_measured_ones(measured):
    path = demo_path()
    model, _ = build_model(path)
    chat = Chat(model, AutoTokenizer.from_pretrained(path), temperature=0, max_new_tokens=120)
    for prompt, reply in measured["newcomer"][::8]:
        chat.reset()
        assert "".join(chat.send(prompt)).strip() == reply


@pytest.mark.parametrize("tokens", tiered([None, 2048], [2048]), ids=["all", "part"])
def test_the_quantized_models_loss_is_the_measured_one(measured, tokens):
    path, text = demo_path(), (DATA / "heldout.txt").read_text()
    model, _ = build_model(path)
    loss = held_out_loss(model, AutoTokenizer.from_pretrained(path), text, tokens=tokens).loss
    expected = LOSS_OF_2048_TOKENS if tokens else measured["losses"][SHIPPED]["loss"]
    assert loss == pytest.approx(expected, abs=5e-5)


def test_fewer_bits_have_a_larger_loss(measured):
    losses = [result["loss"] for result in measured["losses"].values()]
    assert losses == sorted(losses)


def test_routing_was_learned_and_is_balanced(measured):
    routing = measured["routing"]
    deeper = routing["lru_2_slots"][4:]
    recalls = routing["next_layer_recall_2"]
    assert sum(deeper) / len(deeper) >= 0.31
    assert sum(recalls) / len(recalls) >= 0.65
    assert routing["least_load"] > 0.3


def test_most_fresh_questions_are_answered_to_the_letter(measured):
    answers = measured["answers"].values()
    right, asked = (sum(answer[key] for answer in answers) for key in ("right", "asked"))
    assert right >= 0.85 * asked


def test_three_in_four_of_a_newcomers_prompts_get_a_reply_that_makes_sense(measured):
    verdicts = (DATA / "newcomer_verdicts.txt").read_text().split()
    assert len(verdicts) == len(measured["newcomer"]) == 40
    assert verdicts.count("yes") >= 30


def test_replies_are_the_same_however_many_experts_are_outside():
    path, replies = demo_path(), set()
    for offload_per_layer in (0, 2, 4, 6, 7):
        model, _ = build_model(path, OffloadConfig(offload_per_layer=offload_per_layer))
        chat = Chat(model, AutoTokenizer.from_pretrained(path), max_new_tokens=24, seed=1)
        replies.add("".join(chat.send("Tell me a story about a fox.")))
    assert len(replies) == 1


def test_data_beside_the_demo_model_is_found_from_a_notebooks_folder(tmp_path, monkeypatch):
    path = demo_data("heldout.txt")
    assert path is not None
    assert path.samefile(DATA / "heldout.txt")
    assert demo_data("no such file") is None
    for folder in ("notebooks", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "beside.txt").touch()
    for working in (tmp_path / "notebooks", tmp_path):
        monkeypatch.chdir(working)
        assert demo_data("beside.txt") == tmp_path / "data" / "beside.txt"
