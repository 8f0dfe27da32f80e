"""Recordings of texts that a model reads as if it had written them. Knows ids; judges nothing."""

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
    """Return a recording of each text, which the model reads token by token, as it decodes.

    A step is one token, and what the model would have written doesn't matter: it is given the text
    (it is teacher-forced), so recordings of the same texts can be compared between models. The text
    is cut into windows without overlap, and a window's tokens see only that window. The cache goes
    on from one text to the next; a replay of another policy or size begins as `mixoff.sweep` tells.

    Parameters
    ----------
    model
        One that `mixoff.build_model` built.
    texts
        The text of each kind. Special tokens written in it are special.
    tokens
        How many tokens of each text to read: its first ones, by default all but the last.
    window
        Tokens of a window: by default as many as the model has positions for, 2,048 at most.
    progress
        Whether to show a progress bar.

    Raises
    ------
    ConfigError
        If there is no text, one has fewer than two tokens, none are to be read, or a window has
        more than the model has positions for.
    MixoffError
        If the model has no expert cache.
    """
    if not texts:
        raise ConfigError("texts: there is none: give one, or more.")
    cache = cache_of(model)
    positions = int(model.config.max_position_embeddings)
    cut = {
        kind: text_windows(tokenizer, text, positions, window=window, tokens=tokens)
        for kind, text in texts.items()
    }
    traces: dict[str, Trace] = {}
    total = sum(windows.predicted for windows in cut.values())
    with tqdm(total=total, desc="recording", unit="token", disable=not progress) as bar:
        for kind, windows in cut.items():
            with cache.record() as traces[kind]:
                for read, _ in windows:
                    context = Context(model)
                    for token in read.tolist():
                        context.read([token])
                        bar.update()
            traces[kind].provenance |= {"text": kind, "teacher_forced": True}
    return traces
