"""Text as HTML that does nothing: whatever a model or a person wrote is shown, never run.

Knows markup; nothing of widgets or chats. Only a finished reply is rendered as Markdown, and of
that only what is harmless: no HTML of its own, no picture, no link but to a page or an address.
"""

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but \t and \n: every escape sequence of a terminal
    r"\u202a-\u202e\u2066-\u2069"  # what reorders the text around it
    r"\ud800-\udfff]"  # halves of characters, which no message to a browser can hold
)
_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_PICTURES_OF_CONTROLS = 0x2400  # where Unicode has a visible sign for each control character


def visible(text: str) -> str:
    """Return the text with a visible sign in place of each character that steers what shows it.

    Each character is judged by itself, so a stream may be cut anywhere.
    """
    return _CONTROLS.sub(lambda match: _sign(match[0]), text.replace("\r\n", "\n"))


def _sign(character: str) -> str:
    if (code := ord(character)) < 0x20:
        return chr(_PICTURES_OF_CONTROLS + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def plain_html(text: str) -> str:
    """Return text as HTML that shows exactly it."""
    return escape(visible(text))


def markdown_html(text: str) -> str:
    """Return Markdown as HTML without anything that acts, loads or is not the text's own."""
    return str(_markdown().render(visible(text)))


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False})
    markdown.enable(["table", "strikethrough"]).disable("image")
    markdown.validateLink = lambda url: bool(_LINK.match(url))  # type: ignore[method-assign]
    markdown.add_render_rule("link_open", _link_open)
    return markdown


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """Open a link in a tab of its own, which learns nothing of the notebook."""
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(renderer.renderToken(tokens, index, options, env))


def user_html(text: str) -> str:
    """Return a person's message as a bubble."""
    return _bubble("mixoff-user", "You", plain_html(text))


def reply_html(text: str) -> str:
    """Return a finished reply as a bubble, its Markdown rendered."""
    shown = markdown_html(text) if text.strip() else "<em>(no text)</em>"
    return _bubble("mixoff-reply", "Model", shown)


def live_html(text: str) -> str:
    """Return a reply that grows as a bubble of plain text with a caret at its end."""
    return _bubble(
        "mixoff-growing", "Model", f"{plain_html(text)}<span class='mixoff-caret'></span>"
    )


def _bubble(kind: str, speaker: str, shown: str) -> str:
    return f"<div class='{kind}' role='group' aria-label='{speaker}' dir='auto'>{shown}</div>"


def log_html(messages: Sequence[dict[str, str]], forgotten: Sequence[dict[str, str]] = ()) -> str:
    """Return a conversation as bubbles, the oldest first; the system prompt isn't among them.

    Parameters
    ----------
    messages
        Dicts of role and content.
    forgotten
        Those before them, which the model's context holds no more.
    """
    before = "".join(map(_message_html, forgotten))
    if before:
        note = "<p class='mixoff-note'>What is above, the model has forgotten.</p>"
        before = f"<div class='mixoff-forgotten'>{before}</div>{note}"
    return before + "".join(map(_message_html, messages))


def _message_html(message: dict[str, str]) -> str:
    if message["role"] == "system":
        return ""
    render = user_html if message["role"] == "user" else reply_html
    return render(message["content"])


def status_html(text: str, *, is_final: bool = True) -> str:
    """Return a sentence below the conversation; a final one is read out by screen readers."""
    role = " role='status'" if is_final else ""
    return f"<span{role}>{plain_html(text)}</span>"
