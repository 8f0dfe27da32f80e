"""Statistics as text and JSON."""

import json

from mixoff.cache.stats import CacheStats
from mixoff.chat.reply import ReplyStats
from mixoff.cli.report import statistics_line, statistics_object


def test_rates_that_were_not_measured_are_unknown() -> None:
    stats = ReplyStats(5, 0, 0, 0.5, 0.5, "stopped", CacheStats((0, 0), (0, 0), 0), 0, None)
    line = statistics_line(stats)
    assert "hit rate unknown" in line
    assert "tokens/s unknown" in line
    assert "first token" not in line
    facts = statistics_object(stats)
    assert facts["tokens_per_second"] is None
    assert facts["cache"]["hit_rate"] is None
    json.dumps(facts, allow_nan=False)
