"""Numbers as text, tables and JSON. Knows statistics, checkpoints, plans and recordings."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from mixoff.cli.printable import one_line
from mixoff.units import format_nbytes

if TYPE_CHECKING:
    import pandas as pd

    from mixoff.cache.stats import CacheStats
    from mixoff.chat.reply import ReplyStats
    from mixoff.checkpoints.formats import PlannedCheckpoint
    from mixoff.planning.plan import MemoryPlan
    from mixoff.trace import Trace


def percent(share: float) -> str:
    """Return a share from 0 to 1 as "82.8 %", and NaN as "unknown"."""
    return "unknown" if math.isnan(share) else f"{100 * share:.1f} %"


def statistics_line(stats: "ReplyStats") -> str:
    """Return a reply's statistics in one line."""
    parts = []
    if (cache := stats.cache) is not None:
        parts += [
            f"hits {cache.hits}",
            f"misses {cache.misses}",
            f"hit rate {percent(cache.hit_rate)}",
            f"bytes read {format_nbytes(cache.bytes_moved)}",
        ]
        if cache.computed:
            parts.append(f"computed in host memory {cache.computed}")
        if guesses := cache.prefetch_used + cache.prefetch_late + cache.prefetch_wasted:
            parts.append(f"guesses {guesses}, {cache.prefetch_used} in time")
    rate = f"{stats.tokens_per_second:.1f}" if stats.new_tokens > 1 else "unknown"
    parts.append(f"tokens/s {rate}")
    if stats.new_tokens:
        parts.append(f"first token after {stats.seconds_to_first_token:.2f} s")
    if stats.finish != "stop":
        end = "stopped" if stats.finish == "stopped" else "cut"
        parts.append(f"{end} after {stats.new_tokens} token{'s' * (stats.new_tokens != 1)}")
    return ", ".join(parts)


def statistics_object(stats: "ReplyStats") -> dict[str, Any]:
    """Return a reply's statistics for JSON, with None for unknown rates."""
    rate = stats.tokens_per_second if stats.new_tokens > 1 else None
    statistics = asdict(stats) | {"tokens_per_second": rate}
    if (cache := stats.cache) is not None:
        rates = [None if math.isnan(rate) else rate for rate in cache.hit_rate_per_layer]
        demanded = cache.hits + cache.misses
        statistics["cache"] |= {
            "hits": cache.hits,
            "misses": cache.misses,
            "hit_rate": cache.hit_rate if demanded else None,
            "hit_rate_per_layer": rates,
        }
    return statistics


def layer_table(stats: "CacheStats") -> Table:
    """Return a table of each layer's hits, misses and hit rate."""
    table = Table("layer", "hits", "misses", "hit rate", title="since the model was loaded")
    for column in table.columns:
        column.justify = "right"
    rows = zip(stats.hits_per_layer, stats.misses_per_layer, stats.hit_rate_per_layer, strict=True)
    for layer, (hits, misses, rate) in enumerate(rows):
        table.add_row(str(layer), str(hits), str(misses), percent(rate))
    table.add_section()
    table.add_row("all", str(stats.hits), str(stats.misses), percent(stats.hit_rate))
    return table


def checkpoint_facts(checkpoint: "PlannedCheckpoint") -> dict[str, Any]:
    """Return a checkpoint's contents for JSON; sizes are in bytes."""
    config, non_expert = checkpoint.config, checkpoint.non_expert
    layouts = [layout for layer in checkpoint.expert_layouts() for layout in layer]
    expert_weights = sum(math.prod(shape) for layout in layouts for _, shape in layout.shapes)
    attention_weights = _attention_weights(config)
    is_packed = {name: str(tensor.dtype) == "torch.uint8" for name, tensor in non_expert.items()}
    plain = sum(
        math.prod(tensor.shape) for name, tensor in non_expert.items() if not is_packed[name]
    )
    packed = sum(tensor.nbytes for name, tensor in non_expert.items() if is_packed[name])
    return {
        "folder": str(checkpoint.path),
        "format": checkpoint.format,
        "model_type": config.get("model_type"),
        "layers": checkpoint.num_layers,
        "experts_per_layer": checkpoint.num_experts,
        "top_k": config.get("num_experts_per_tok"),
        "parameters": plain + attention_weights + expert_weights,
        "attention": checkpoint.scheme.attention.to_dict(),
        "attention_bits_per_weight": 8 * packed / attention_weights,
        "experts": checkpoint.scheme.experts.to_dict(),
        "layer_experts": {
            str(layer): experts.to_dict()
            for layer, experts in sorted(checkpoint.scheme.layer_experts.items())
        },
        "experts_bits_per_weight": 8 * sum(layout.nbytes for layout in layouts) / expert_weights,
        "non_expert_nbytes": sum(tensor.nbytes for tensor in non_expert.values()),
        "experts_nbytes": checkpoint.experts_nbytes,
        "expert_nbytes": max(layout.nbytes for layout in layouts),
    }


def checkpoint_table(facts: dict[str, Any]) -> Table:
    """Return the facts of `checkpoint_facts` as a table."""
    rows = [
        ("folder", facts["folder"]),
        *_origin(facts),
        ("format", facts["format"]),
        ("model type", facts["model_type"]),
        ("layers", facts["layers"]),
        ("experts", f"{facts['experts_per_layer']} in each layer, {facts['top_k']} for a token"),
        ("parameters", f"{facts['parameters']:,}"),
        ("attention", _scheme(facts["attention"], facts["attention_bits_per_weight"])),
        ("experts stored as", _scheme(facts["experts"], facts["experts_bits_per_weight"])),
        *(
            (f"experts of layer {layer}", _settings(settings))
            for layer, settings in facts["layer_experts"].items()
        ),
        ("non-expert", format_nbytes(facts["non_expert_nbytes"])),
        ("all experts", format_nbytes(facts["experts_nbytes"])),
        ("one expert", f"{format_nbytes(facts['expert_nbytes'])} ({facts['expert_nbytes']:,} B)"),
    ]
    return _table("The checkpoint", rows)


def _origin(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the row of a checkpoint's commit on the hub, if it is from there."""
    if not facts.get("repository"):
        return []
    return [("on the hub", f"{facts['repository']}@{facts['revision'][:8]}")]


def plan_facts(plan: "MemoryPlan") -> dict[str, Any]:
    """Return a plan and its sums for JSON; sizes are in bytes."""
    sums = {"device_nbytes": plan.device_nbytes, "host_nbytes": plan.host_nbytes}
    return asdict(plan) | sums | {"total": plan.total}


def memory_table(plan: "MemoryPlan", num_experts: int) -> Table:
    """Return a table of the bytes that a run takes in each memory."""
    table = Table(title=f"A run on {plan.device}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for section in (_device_rows(plan, num_experts), _host_rows(plan)):
        for name, nbytes in section:
            table.add_row(name, format_nbytes(nbytes))
        table.add_section()
    table.add_row("memory in all", format_nbytes(plan.total))
    table.add_row("experts on disk, not counted", format_nbytes(plan.disk))
    table.add_section()
    table.add_row("experts on the device", str(plan.experts_on_device))
    kind = "" if plan.host_tier == "none" else f", {plan.host_tier}"
    table.add_row(f"in host memory{kind}", str(plan.experts_on_host))
    table.add_row("on disk only", str(plan.experts_on_disk))
    table.add_row("disk reads", plan.io)
    table.caption = f"{plan.io}: {plan.io_reason}"
    table.caption_justify = "left"
    return table


def _device_rows(plan: "MemoryPlan", num_experts: int) -> list[tuple[str, int]]:
    return [
        (f"slots, {plan.slots_per_layer} of {num_experts} experts in each layer", plan.slots),
        (f"staging, {plan.staging // plan.buffer_nbytes} experts in flight", plan.staging),
        ("non-expert", plan.non_expert),
        (f"KV cache, {plan.context} tokens", plan.kv_cache),
        ("workspace", plan.workspace),
    ]


def _host_rows(plan: "MemoryPlan") -> list[tuple[str, int]]:
    rows = [("host memory for records", plan.host)]
    if plan.bounce:
        rows = [
            ("the device in all", plan.device_nbytes),
            *rows,
            ("host buffers for transfers", plan.bounce),
            ("pinned of both", plan.pinned),
        ]
    return rows


def trace_facts(trace: "Trace") -> dict[str, Any]:
    """Return a recording's facts for JSON; the key `told` has its provenance."""
    demands = trace.demands()
    decoded = int((trace.per_token()["phase"] == "decode").sum())
    return {
        "told": trace.provenance,
        "layers": trace.num_layers,
        "experts_per_layer": trace.num_experts,
        "steps": trace.num_steps,
        "decoded_tokens": decoded,
        "hits": int(demands.hit.sum()),
        "misses": int((~demands.hit).sum()),
        "hit_rate": float(demands.hit.mean()) if demands.hit.size else None,
    }


def trace_table(facts: dict[str, Any]) -> Table:
    """Return the facts of `trace_facts` as a table."""
    provenance = {
        name: value
        for name, value in facts["told"].items()
        if name not in ("num_layers", "num_experts", "record_nbytes")
    }
    sizes = facts["told"]["record_nbytes"]
    rate = float("nan") if facts["hit_rate"] is None else facts["hit_rate"]
    rows = [
        ("layers", facts["layers"]),
        ("experts", f"{facts['experts_per_layer']} in each layer, {format_nbytes(sizes[0])} each"),
        ("steps", f"{facts['steps']}, {facts['decoded_tokens']} of them one token"),
        ("demands", f"hits {facts['hits']}, misses {facts['misses']}, hit rate {percent(rate)}"),
        *provenance.items(),
    ]
    return _table("The recording", rows)


def sweep_table(table: "pd.DataFrame") -> Table:
    """Return hit rates, the mean over layers, and bytes of `mixoff.sweep`, a row per slots."""
    title = "Hit rate, mean over layers, and bytes to move"
    printed = Table("slots", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    policies = list(dict.fromkeys(table["policy"]))
    for policy in policies:
        printed.add_column(Text(one_line(policy)), justify="right", overflow="fold")
    rates = table.groupby(["slots", "policy"])["hit_rate"].mean()
    sizes = table.groupby(["slots", "policy"])["bytes"].sum()
    for slots in dict.fromkeys(table["slots"]):
        cells = [
            f"{percent(rates[slots, policy])}\n{_short(sizes[slots, policy])}"
            for policy in policies
        ]
        printed.add_row(str(slots), *cells)
    return printed


def _short(nbytes: float) -> str:
    number, unit = format_nbytes(nbytes).split()
    return f"{float(number):.4g} {unit}"


def _table(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(one_line(value)))
    return table


def _scheme(settings: dict[str, Any], bits_per_weight: float) -> str:
    return f"{_settings(settings)}: {bits_per_weight:.2f} bits a weight"


def _settings(settings: dict[str, Any]) -> str:
    options = [f"{name} {value}" for name, value in settings.items() if name != "method"]
    return ", ".join([settings["method"], *options])


def _attention_weights(config: Any) -> int:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return int(config["num_hidden_layers"]) * 2 * (heads + kv_heads) * head_dim * hidden
