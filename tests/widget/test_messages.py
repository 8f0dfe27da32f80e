"""Messages become inert HTML: hostile text stays text, and a reply's Markdown is rendered."""

import re

import pytest

from mixoff.widget.messages import live_html, log_html, markdown_html, reply_html, user_html
from support.html_page import Page

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "picture": "<img src=x onerror=alert(1)>",
    "closing tags": "</div></div><style>* {display: none}</style>",
    "script in a link": "<a href='javascript:alert(1)'>a</a>",
    "Markdown links": "[a](javascript:alert(1)) [b](data:text/html,x) [c](JaVaScRiPt:alert(1))",
    "Markdown pictures": "![a](https://example.org/a.png) ![b](data:image/png;base64,xx)",
    "escape sequences": "\x1b[31mred\x1b[0m\x07\x00",
    "reordering and surrogates": "\u202eesrever \ud83d half, \ud800 half",
    "entities": "&lt;b&gt; &amp;",
    "code": "`</code><b>` and\n\n```x' onclick='alert(1)\n</pre><b>\n```",
    "comments": "<!-- a --> <![CDATA[b]]> <?php c ?>",
    "quotes in a link": "[a](https://example.org/\"onmouseover=alert(1)) <https://example.org/'x>",
}
HARMLESS = {
    *("div", "span", "p", "em", "strong", "code", "pre", "a", "br", "hr", "s", "blockquote"),
    *("ul", "ol", "li", "h1", "h2", "h3", "table", "thead", "tbody", "tr", "th", "td"),
}
OUR_ATTRIBUTES = {"class", "role", "aria-label", "dir", "href", "target", "rel"}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("render", [user_html, reply_html, live_html])
def test_hostile_text_stays_text(render, text):
    page = Page(render(text))
    for tag, attributes in page.elements:
        assert tag in HARMLESS
        assert set(attributes) <= OUR_ATTRIBUTES
        assert re.match(r"https?://", attributes.get("href") or "https://")
    page.text.encode()


@pytest.mark.parametrize(
    "name", [name for name, text in HOSTILE.items() if text.isascii() and "\x1b" not in text]
)
@pytest.mark.parametrize("render", [user_html, live_html])
def test_text_without_markdown_is_shown_to_the_letter(render, name):
    assert Page(render(HOSTILE[name])).text == HOSTILE[name]


def test_control_characters_become_visible():
    assert "\u241b[31mred" in Page(live_html("\x1b[31mred")).text


def test_a_finished_reply_is_rendered_as_markdown():
    page = Page(markdown_html("# A\n\n- *b*\n\n| c |\n|---|\n| d |\n\n```\ne\n```"))
    assert {"h1", "ul", "em", "table", "pre"} <= {tag for tag, _ in page.elements}


def test_a_link_opens_a_new_tab_without_a_reference_to_the_notebook():
    ((_, attributes),) = [
        e for e in Page(markdown_html("[a](https://b.org)")).elements if e[0] == "a"
    ]
    assert attributes["target"] == "_blank"
    assert {"noopener", "noreferrer"} <= set(attributes["rel"].split())


def test_the_system_prompt_has_no_bubble():
    assert log_html([{"role": "system", "content": "be brief"}]) == ""
