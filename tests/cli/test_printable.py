"""Printed text holds no control characters."""

import pytest

from mixoff.cli.printable import one_line, printable

ESCAPES = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "link": "\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "device control": "\x1bPdcs\x1b\\",
    "application command": "\x1b_apc\x1b\\",
    "C1 control": "\x9b2Jcleared",
    "carriage return": "safe\rEVIL\b\b",
    "reordering": "\u202egnp.exe",
    "tags": "a\U000e0041\U000e007fb",
}


def test_no_control_character_is_printable() -> None:
    controls = {*range(0x20), 0x7F, *range(0x80, 0xA0)} - {0x09, 0x0A}
    order = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x2070)}
    removed = controls | order | {*range(0xE0000, 0xE0080)}  # and tags
    scalars = (*range(0xD800), *range(0xE000, 0x110000))
    kept = "".join(chr(code) for code in scalars if code not in removed)
    is_same = printable("".join(map(chr, scalars))) == kept  # too long for an assertion message
    assert is_same
    assert len(scalars) == 1_112_064


def test_a_lone_surrogate_is_not_printable() -> None:
    assert printable("a\ud83db") == "ab"


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_an_escape_sequence_is_broken_wherever_the_stream_is_cut(text: str) -> None:
    whole = printable(text)
    assert not set(whole) & set("\x1b\x9b\x07\x08\r\u202e\U000e0041")
    for cut in range(len(text)):
        assert printable(text[:cut]) + printable(text[cut:]) == whole


def test_one_line_is_one_line() -> None:
    assert one_line("a\n b\r\n\tc\x1b") == "a b c"
