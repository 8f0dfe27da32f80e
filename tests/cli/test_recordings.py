"""The commands that record and replay print recordings and hit rates."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mixoff
from mixoff.trace import Trace
from support.command_line import invoke, refusal
from support.recordings import HandPlayed


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    played = HandPlayed(layers=2, experts=4, slots=2).record()
    for step in range(20):
        for layer in range(2):
            played.demand(layer, [step % 4, (step + layer) % 3])
    played.trace(model="the\x1b[2Jmodel").save(tmp_path / "a.trace")
    return tmp_path / "a.trace"


def test_a_replay_prints_the_recording_and_a_row_for_each_number_of_slots(recorded: Path) -> None:
    result = invoke("replay", recorded, "--policies", "lru,belady-bypass", "--slots", "1-2,4")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    for words in ("2", "4 in each layer, 1000 B each", "20, 20 of them one token", "the[2Jmodel"):
        assert words in result.stdout
    lines = result.stdout.splitlines()
    (heading,) = [line for line in lines if "slots" in line and "lru" in line]
    assert heading.split() == ["slots", "lru", "belady-bypass"]
    rows = [line.split() for line in lines[lines.index(heading) + 2 :] if "%" in line]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    rates = mixoff.sweep(Trace.load(recorded), ["lru"], [1, 2, 4]).groupby("slots")["hit_rate"]
    assert [row[1] for row in rows] == [f"{100 * rate:.1f}" for rate in rates.mean()]


def test_json_and_csv_hold_the_whole_table(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    words = ("--policies", "fifo, floor", "--slots", "2", "--json", "--csv", out)
    output = json.loads(invoke("replay", recorded, *words).stdout)
    table = mixoff.sweep(Trace.load(recorded), ["fifo", "floor"], 2)
    for printed, row in zip(output["sweep"], table.to_dict(orient="records"), strict=True):
        assert printed == pytest.approx(row)
    facts = output["recorded"]
    assert facts["hits"] + facts["misses"] == table["hits"][:2].sum() + table["misses"][:2].sum()
    with out.open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["policy"] for row in rows] == ["fifo", "fifo", "floor", "floor"]
    assert [float(row["hits"]) for row in rows] == table["hits"].tolist()


def test_without_options_a_replay_shows_bounds_and_every_number_of_slots(recorded: Path) -> None:
    rows = json.loads(invoke("replay", recorded, "--json").stdout)["sweep"]
    assert {row["slots"] for row in rows} == {1, 2, 3, 4}
    assert {"floor", "belady", "belady-bypass", "lru"} <= {row["policy"] for row in rows}


@pytest.mark.parametrize("slots", ["0", "1-9", "x", "3-1", "1-", ",", "-1", "99999"])
def test_invalid_slots_are_refused(recorded: Path, slots: str) -> None:
    assert "slots=" in refusal(invoke("replay", recorded, f"--slots={slots}"))


@pytest.mark.parametrize("policies", ["best", "lru,best", ""])
def test_unknown_policies_are_refused(recorded: Path, policies: str) -> None:
    assert "policies=" in refusal(invoke("replay", recorded, "--policies", policies))


def test_a_file_that_isnt_a_trace_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in refusal(invoke("replay", tmp_path / "none"))
    (tmp_path / "text").write_text("hello")
    assert "no trace" in refusal(invoke("replay", tmp_path / "text"))


def test_a_table_that_cannot_be_written_is_refused(recorded: Path, tmp_path: Path) -> None:
    result = invoke("replay", recorded, "--csv", tmp_path / "none" / "a.csv")
    assert "csv=" in refusal(result)


def test_a_replay_and_its_help_import_no_torch(recorded: Path) -> None:
    code = """
import sys
from mixoff.cli import main
for words in (["--help"], [sys.argv[1], "--json"]):
    sys.argv = ["mixoff", "replay", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
print({"torch", "transformers"} & {*sys.modules})
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("sys.argv[1]", repr(str(recorded)))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_recording_into_no_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    output = tmp_path / "none" / "a.trace"
    result = invoke("record", "nowhere", "--prompt", "Hello!", "--output", output)
    assert "there is no folder" in refusal(result)


def test_a_replay_finds_the_recorded_hits(tmp_path: Path) -> None:
    output = tmp_path / "a.trace"
    words = ("--prompt", "Why is the sky blue?", "--max-new-tokens", 8, "--device", "cpu")
    result = invoke("record", mixoff.demo_path(), *words, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "hit rate" in result.stdout
    trace = Trace.load(output)
    assert mixoff.replay(trace).hit.tolist() == trace.demands().hit.tolist()
    assert (trace.per_token()["phase"] == "decode").sum() > 0
    assert {"prompt_sha256", "seed", "policy", "model"} <= {*trace.provenance}
    facts = json.loads(invoke("replay", output, "--json").stdout)["recorded"]
    assert facts["steps"] == trace.num_steps
