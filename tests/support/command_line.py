"""Calls of the command line in this process. Knows exit codes and streams; no commands."""

from pathlib import Path

from typer.testing import CliRunner, Result

from mixoff.cli import app

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def invoke(*words: object, piped: str | bytes = "") -> Result:
    arguments = [str(word) for word in words]
    return CliRunner().invoke(app, arguments, input=piped, env={"COLUMNS": "100"})


def chat_output(checkpoint: Path, *words: object, piped: str | bytes = "") -> str:
    """Return what a short greedy chat with a checkpoint prints."""
    options = ("--quantized-model-name", checkpoint, "--offload-per-layer", 2)
    limits = ("--max-new-tokens", 4, "--temperature", 0, "--device", "cpu")
    result = invoke("chat", *options, *limits, *words, piped=piped)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refusal(result: Result) -> str:
    """Return the one line of a refused command."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mixoff: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr
