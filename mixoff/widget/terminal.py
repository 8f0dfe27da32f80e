"""A chat without widgets: a prompt, and replies that are printed as they stream."""

from typing import TYPE_CHECKING

from mixoff.errors import MixoffError
from mixoff.widget.messages import visible

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat


def repl(chat: "Chat") -> None:
    """Answer typed messages until an empty line, the end of input or an interrupt at the prompt.

    An interrupt during a reply ends the reply. This works wherever Python's `input` does.
    """
    print("An empty line ends the chat, an interrupt the reply.")
    while message := _read_message():
        try:
            _answer(chat, message)
        except MixoffError as error:
            print(visible(str(error)))


def _read_message() -> str:
    try:
        return input("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _answer(chat: "Chat", message: str) -> None:
    try:
        for piece in chat.send(message):
            print(visible(piece), end="", flush=True)
    except KeyboardInterrupt:
        chat.stop()
    print()
