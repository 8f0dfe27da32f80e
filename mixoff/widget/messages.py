"""Messages as inert HTML: text of a model or a person is displayed, never executed.

Knows markup; nothing of widgets or chats. Only a finished reply is rendered as Markdown, without
its HTML and its pictures, and with links only to pages and mail addresses.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt

_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but \t and \n: the start of every escape sequence
    r"\u202a-\u202e\u2066-\u2069"  # characters that reorder the text around them
    r"\ud800-\udfff]"  # lone surrogates, which no message to a browser can hold
)
_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_PICTURES_OF_CONTROLS = 0x2400  # Unicode's block of visible signs for control characters


def visible(text: str) -> str:
    """Return the text with a visible sign in place of each control character.

    Each character is replaced by itself, so a stream may be cut anywhere.
    """
    return _CONTROLS.sub(lambda match: _sign(match[0]), text.replace("\r\n", "\n"))


def _sign(character: str) -> str:
    if (code := ord(character)) < 0x20:
        return chr(_PICTURES_OF_CONTROLS + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def plain_html(text: str) -> str:
    """Return text as HTML that shows exactly this text."""
    return escape(visible(text))


@lru_cache(maxsize=1024)  # the whole log is rendered each time, and only its end is new
def markdown_html(text: str) -> str:
    """Return Markdown as HTML without scripts, pictures, or HTML from the text."""
    return str(_markdown().render(visible(text)))


@cache
def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False})
    markdown.enable(["table", "strikethrough"]).disable("image")
    markdown.validateLink = lambda url: bool(_LINK.match(url))  # type: ignore[method-assign]
    markdown.add_render_rule("link_open", _link_open)
    return markdown


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """Render a link that opens a new tab, without a reference to the notebook."""
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(renderer.renderToken(tokens, index, options, env))


def user_html(text: str) -> str:
    """Return a person's message as a bubble."""
    return _bubble("mixoff-user", "You", plain_html(text))


def reply_html(text: str) -> str:
    """Return a finished reply as a bubble, its Markdown rendered."""
    html = markdown_html(text) if text.strip() else "<em>(no text)</em>"
    return _bubble("mixoff-reply", "Model", html)


def live_html(text: str) -> str:
    """Return a running reply as a bubble of plain text, with a caret at its end."""
    return _bubble(
        "mixoff-growing", "Model", f"{plain_html(text)}<span class='mixoff-caret'></span>"
    )


def _bubble(kind: str, speaker: str, html: str) -> str:
    return f"<div class='{kind}' role='group' aria-label='{speaker}' dir='auto'>{html}</div>"


def log_html(messages: Sequence[dict[str, str]], forgotten: Sequence[dict[str, str]] = ()) -> str:
    """Return a conversation as bubbles, the oldest first, without the system prompt.

    Parameters
    ----------
    messages
        Dicts of role and content.
    forgotten
        Messages before them, which were dropped from the model's context.
    """
    earlier = "".join(map(_message_html, forgotten))
    if earlier:
        note = "<p class='mixoff-note'>The model has forgotten the messages above.</p>"
        earlier = f"<div class='mixoff-forgotten'>{earlier}</div>{note}"
    return earlier + "".join(map(_message_html, messages))


def _message_html(message: dict[str, str]) -> str:
    if message["role"] == "system":
        return ""
    render = user_html if message["role"] == "user" else reply_html
    return render(message["content"])


def status_html(text: str, *, is_final: bool = True) -> str:
    """Return a status sentence; screen readers read a final one out."""
    role = " role='status'" if is_final else ""
    return f"<span{role}>{plain_html(text)}</span>"
