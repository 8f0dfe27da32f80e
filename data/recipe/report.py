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
    measured: Measured = json.loads((data / "measurements.json").read_text())
    verdicts = (data / "newcomer_verdicts.txt").read_text().split()
    with (data / "demo-mixtral-float16" / "training_log.csv").open() as file:
        log = list(csv.DictReader(file))
    losses, routing, quality = measured["losses"], measured["routing"], quality_table(measured)
    text = TEMPLATE.read_text().format(
        steps=int(log[-1]["step"]),
        tokens=int(log[-1]["tokens"]) / 1e6,
        minutes=int(log[-1]["seconds"]) / 60,
        loss=sum(float(row["loss"]) for row in log[-5:]) / 5,
        curve="\n".join(
            f"| {int(row['tokens']) / 1e6:.2f} | {row['validation_loss']} |"
            for row in log
            if row["validation_loss"]
        ),
        held_out_tokens=losses["not quantized"]["tokens"],
        quality=quality,
        routing=routing_table(routing),
        routing_tokens=routing["tokens"],
        least=routing["least_load"],
        largest=routing["largest_load"],
        answers=answers_table(measured["answers"]),
        wrong=wrong_answers(measured["answers"]),
        sensible=verdicts.count("yes"),
        newcomer=newcomer_list(measured["newcomer"], verdicts),
    )
    (data / "README.md").write_text(text)
    readme = data.parent / "README.md"
    marked = re.compile(r"(<!-- quality:begin -->\n).*?(<!-- quality:end -->)", re.DOTALL)
    readme.write_text(
        marked.sub(lambda match: match[1] + quality + "\n" + match[2], readme.read_text())
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
