"""A checkpoint's settings and index are read once on the way to a model."""

import json
import subprocess
import sys

import pytest

from mixoff import demo_path

# Counts who opens which file. Of the frames below an open, the innermost that is of mixoff or of
# transformers is the reader: mixoff reads a file itself, or calls transformers, which does.
COUNT = """
import json, os, sys
from collections import Counter
from pathlib import Path

NAMES = ("config.json", "model.safetensors.index.json")
reads = Counter()


def note(event, args):
    if event == "open" and isinstance(args[0], str | os.PathLike):
        name = Path(args[0]).name
        if name in NAMES:
            reads[f"{reader()} {name}"] += 1


def reader():
    frame = sys._getframe()
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("mixoff", "transformers"):
            return package
        frame = frame.f_back


def build_model(folder):
    mixoff.build_model(folder)


def load_chat(folder):
    mixoff.load_chat(folder)


def chat(folder):
    options = ["--quantized-model-name", folder, "--prompt", "hello", "--max-new-tokens", "1"]
    app(["chat", *options], standalone_mode=False)


import mixoff
from mixoff.cli.commands import app

sys.addaudithook(note)
counts = {}
for function in (build_model, load_chat, chat):
    reads.clear()
    function(sys.argv[1])
    counts[function.__name__] = dict(reads)
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, int]]:
    command = [sys.executable, "-c", COUNT, str(demo_path())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("function", ["build_model", "load_chat", "chat"])
def test_a_file_is_read_once_on_the_way_to_a_model(counts, function, name):
    assert counts[function][f"mixoff {name}"] == 1
    assert counts["build_model"]["transformers model.safetensors.index.json"] >= 1  # are told apart
