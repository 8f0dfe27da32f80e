"""Text from token ids, as soon as its characters are complete. Knows ids; nothing of models."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of one byte
_UNFINISHED = "\ufffd"  # a decoder's replacement of an incomplete character's bytes


class TextStream:
    """Decodes ids one by one, and holds a character back until all its ids have been pushed.

    `text` is all text returned so far. Each id is decoded with the few before it, since decoders
    may strip a space before the first id.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._done = 0  # first id of the window; first id whose text is held back
        self.text = ""

    @property
    def ids(self) -> list[int]:
        """The ids whose text was returned."""
        return self._ids[: self._done]

    def push(self, token: int) -> str:
        """Return the text that a further id completes; it may be empty."""
        self._ids.append(token)
        pending = self._pending()
        # One invalid byte in a run of byte tokens, and a decoder replaces all their characters.
        is_byte = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token)))
        if is_byte or pending.endswith(_UNFINISHED) or not self._decode([token]):
            return ""
        return self._release(pending)

    def finish(self) -> str:
        """Return the text held back, complete or not, after the last id."""
        return self._release(self._pending())

    def _release(self, text: str) -> str:
        self._start, self._done = self._done, len(self._ids)
        self.text += text
        return text

    def _pending(self) -> str:
        released = self._decode(self._ids[self._start : self._done])
        window = self._decode(self._ids[self._start :])
        return window[len(released) :]

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(ids, **options))
