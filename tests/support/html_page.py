"""HTML as a browser parses it. Knows elements and text; nothing of the chat box."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """HTML as a browser parses it: its elements, and the text that a person reads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def count(self, name: str) -> int:
        """Return the number of elements of a class."""
        classes = ((attributes.get("class") or "").split() for _, attributes in self.elements)
        return sum(name in names for names in classes)
