"""Write what was measured into data/README.md and into README.md's table. Measures nothing."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

Measured = dict[str, Any]

TEMPLATE = Path(__file__).with_name("data_readme.md")


def write_report(data: Path) -> None:
    """Write data/README.md, and the table of the README above it."""
    (data / "README.md").write_text(data_readme(data))
    readme = data.parent / "README.md"
    table = quality_table(json.loads((data / "measurements.json").read_text()))
    marked = re.compile(r"(<!-- quality:begin -->\n).*?(<!-- quality:end -->)", re.DOTALL)
    page = readme.read_text()
    readme.write_text(marked.sub(lambda match: f"{match[1]}{table}\n{match[2]}", page))


def data_readme(data: Path) -> str:
    """Return data/README.md: the template with everything that was measured."""
    measured: Measured = json.loads((data / "measurements.json").read_text())
    verdicts = (data / "newcomer_verdicts.txt").read_text().split()
    with (data / "demo-mixtral-float16" / "training_log.csv").open() as file:
        log = list(csv.DictReader(file))
    phases = {row["phase"]: row for row in log}  # each phase's last row
    tokens = [int(row["tokens"]) / 1e6 for row in phases.values()]
    losses, routing = measured["losses"], measured["routing"]
    return TEMPLATE.read_text().format(
        steps=sum(int(row["step"]) for row in phases.values()),
        tokens=sum(tokens),
        first_tokens=tokens[0],
        second_tokens=tokens[1],
        minutes=sum(int(row["seconds"]) for row in phases.values()) / 60,
        loss=sum(float(row["loss"]) for row in log[-5:]) / 5,
        curve="\n".join(
            f"| {list(phases).index(row['phase']) + 1} | {int(row['tokens']) / 1e6:.2f} "
            f"| {row['validation_loss']} |"
            for row in log
            if row["validation_loss"]
        ),
        held_out_tokens=losses["not quantized"]["tokens"],
        quality=quality_table(measured),
        routing=routing_table(routing),
        routing_tokens=routing["tokens"],
        least=routing["least_load"],
        largest=routing["largest_load"],
        answers=answers_table(measured["answers"]),
        wrong=wrong_answers(measured["answers"]),
        sensible=verdicts.count("yes"),
        newcomer=newcomer_list(measured["newcomer"], verdicts),
    )


def quality_table(measured: Measured) -> str:
    """Return loss, its rise, perplexity and size by scheme, in Markdown."""
    losses = measured["losses"]
    base = losses["not quantized"]["loss"]
    rows = ["| | loss | rise | perplexity | size, MB |", "|---|---:|---:|---:|---:|"]
    for name, result in losses.items():
        loss, size = result["loss"], result["nbytes"] / 1e6
        rows.append(
            f"| {name} | {loss:.4f} | {loss - base:+.4f} | {math.exp(loss):.4f} | {size:.1f} |"
        )
    return "\n".join(rows)


def routing_table(routing: Measured) -> str:
    """Return hit rates and recall by layer, in Markdown."""
    rows = ["| layer | LRU, 2 slots | LRU, 4 slots | next layer's recall, 2 guesses |"]
    rows.append("|---:|---:|---:|---:|")
    recalls = [*(f"{recall:.3f}" for recall in routing["next_layer_recall_2"]), "—"]
    pairs = zip(routing["lru_2_slots"], routing["lru_4_slots"], recalls, strict=True)
    rows += [
        f"| {i} | {two:.3f} | {four:.3f} | {recall} |"
        for i, (two, four, recall) in enumerate(pairs)
    ]
    deeper = routing["lru_2_slots"][len(routing["lru_2_slots"]) // 2 :]
    mean_recall = sum(routing["next_layer_recall_2"]) / len(routing["next_layer_recall_2"])
    rows.append("")
    rows.append(
        f"Mean of the deeper half at 2 slots: {sum(deeper) / len(deeper):.3f}. "
        f"Mean recall: {mean_recall:.3f}."
    )
    return "\n".join(rows)


def answers_table(answers: Measured) -> str:
    """Return right answers by kind, in Markdown."""
    rows = ["| kind | right | asked |", "|---|---:|---:|"]
    rows += [f"| {k.replace('_', ' ')} | {a['right']} | {a['asked']} |" for k, a in answers.items()]
    right = sum(answer["right"] for answer in answers.values())
    asked = sum(answer["asked"] for answer in answers.values())
    return "\n".join([*rows, f"| **all** | **{right}** | **{asked}** ({right / asked:.1%}) |"])


def wrong_answers(answers: Measured, per_kind: int = 1) -> str:
    """Return a few wrong answers, each kind's first."""
    shown = [wrong for answer in answers.values() for wrong in answer["wrong"][:per_kind]]
    return "; ".join(f"*{_line(q)}* → {_line(r)} (right: {_line(right)})" for q, r, right in shown)


def newcomer_list(pairs: list[list[str]], verdicts: list[str]) -> str:
    """Return every prompt with its reply, and a mark where it makes no sense."""
    rows = ["| prompt | reply | |", "|---|---|---|"]
    for (prompt, reply), verdict in zip(pairs, verdicts, strict=True):
        rows.append(f"| {_line(prompt)} | {_line(reply)} | {'' if verdict == 'yes' else '✗'} |")
    return "\n".join(rows)


def _line(text: str) -> str:
    return text.replace("\n", " / ").replace("|", "\\|")
