"""The demo model's data, as it is committed."""

import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DATA / "recipe"))
    yield
    for name in [
        name for name, m in sys.modules.items() if str(DATA) in str(getattr(m, "__file__", ""))
    ]:
        del sys.modules[name]


def test_half_of_the_newcomers_prompts_share_no_run_of_five_words_with_the_corpus(recipe):
    from build import TRAINING_CHARACTERS, TRAINING_SEED, texts, words

    corpus = words("\n".join(texts(TRAINING_SEED, TRAINING_CHARACTERS)))
    prompts = (DATA / "newcomer_prompts.txt").read_text().splitlines()
    new = []
    for prompt in prompts:
        typed = words(prompt).split()
        runs = [f" {' '.join(typed[i : i + 5])} " for i in range(len(typed) - 4)]
        if runs and not any(run in corpus for run in runs):
            new.append(prompt)
    assert len(new) >= len(prompts) / 2, new
