"""Text without control characters, safe to print. Knows characters; nothing of their meaning.

All text of others passes here before it is printed: replies, names of files, settings of a
checkpoint, messages of errors.
"""

import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but \t and \n: the start of every escape sequence
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # characters that reorder text
    r"\ud800-\udfff\U000e0000-\U000e007f]"  # lone surrogates; tags, which are invisible
)


def printable(text: str) -> str:
    """Return the text without control characters, except \\t and \\n.

    Each character is removed by itself, so a stream may be cut anywhere.
    """
    return _UNPRINTABLE.sub("", text)


def one_line(text: object) -> str:
    """Return an object's text as one printable line."""
    return " ".join(printable(str(text)).split())
