"""Text that is safe to show. Knows what steers a terminal; nothing of what the text says.

Whatever others wrote passes here before a terminal sees it: a model's words, names of files,
settings of a checkpoint, messages of errors.
"""

import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but \t and \n, so every escape sequence's start
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # what reorders text
    r"\ud800-\udfff\U000e0000-\U000e007f]"  # halves of characters; tags, which nobody sees
)


def printable(text: str) -> str:
    """Return the text without the characters that steer a terminal, \\t and \\n excepted.

    Each character is judged by itself, so a stream may be cut anywhere.
    """
    return _UNPRINTABLE.sub("", text)


def one_line(text: object) -> str:
    """Return what an object says as one printable line."""
    return " ".join(printable(str(text)).split())
