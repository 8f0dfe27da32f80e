"""Recordings of teacher-forced texts: a model reads them token by token, as if it decoded them."""

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mixoff.cache.cache import cache_of
from mixoff.chat.context import Context
from mixoff.errors import ConfigError
from mixoff.measure.text_windows import text_windows
from mixoff.trace import Trace


def record_texts(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Mapping[str, str],
    *,
    tokens: int | None = None,
    window: int | None = None,
    progress: bool = False,
) -> dict[str, Trace]:
    """Return a recording of each text, which the model reads token by token, as in decoding.

    A step is one token of the text, whatever the model would have generated (teacher forcing), so
    recordings of the same texts can be compared between models. The text is divided into windows
    without overlap, and tokens attend to their own window only. The cache isn't emptied between
    texts; `mixoff.sweep` describes how a replay of another policy or size begins.

    Parameters
    ----------
    model
        A model built by `mixoff.build_model`.
    texts
        The text of each kind. Special tokens in it are encoded as special tokens.
    tokens
        The number of tokens to read of each text, from its start; by default all but the last.
    window
        Tokens of a window: by default the number of the model's positions, at most 2,048.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If there is no text, one has fewer than two tokens, `tokens` is below 1, or a window is
        longer than the model's positions.
    MixoffError
        If the model has no expert cache.
    """
    if not texts:
        raise ConfigError("texts is empty: give one or more.")
    cache = cache_of(model)
    positions = int(model.config.max_position_embeddings)
    by_kind = {
        kind: text_windows(tokenizer, text, positions, window=window, tokens=tokens)
        for kind, text in texts.items()
    }
    traces: dict[str, Trace] = {}
    total = sum(windows.predicted for windows in by_kind.values())
    with tqdm(total=total, desc="recording", unit="token", disable=not progress) as bar:
        for kind, windows in by_kind.items():
            with cache.record() as traces[kind]:
                for read, _ in windows:
                    context = Context(model)
                    for token in read.tolist():
                        context.read([token])
                        bar.update()
            traces[kind].provenance |= {"text": kind, "teacher_forced": True}
    return traces
