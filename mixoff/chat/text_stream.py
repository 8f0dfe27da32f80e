"""Text from token ids, as soon as its characters are whole."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x[0-9A-F]{2}>")


_UNFINISHED = "\ufffd"  # what a decoder writes for the bytes of a character that isn't whole yet


class TextStream:
    """Turns ids into text as they come, and holds back a character until all its ids are there.

    `text` is all that was handed out. Only the last ids are decoded again, for their spaces.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._shown = 0  # the window's first id; the first id not handed out
        self.text = ""

    @property
    def ids(self) -> list[int]:
        """The ids whose text was handed out."""
        return self._ids[: self._shown]

    def push(self, token: int) -> str:
        """Return the text that a further id completes; it may be empty."""
        self._ids.append(token)
        unseen = self._unseen()
        # One wrong byte in a row of byte tokens, and a decoder shows none of their characters.
        in_bytes = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token)))
        if in_bytes or unseen.endswith(_UNFINISHED) or not self._decode([token]):
            return ""
        return self._hand_out(unseen)

    def finish(self) -> str:
        """Return what was held back, whole or not, when no more ids will come."""
        return self._hand_out(self._unseen())

    def _hand_out(self, text: str) -> str:
        self._start, self._shown = self._shown, len(self._ids)
        self.text += text
        return text

    def _unseen(self) -> str:
        seen = self._decode(self._ids[self._start : self._shown])
        both = self._decode(self._ids[self._start :])
        return both[len(seen) :]

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(ids, **options))
