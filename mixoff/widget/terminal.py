"""A chat without widgets: a prompt, and replies that are printed as they come."""

from typing import TYPE_CHECKING

from mixoff.errors import MixoffError
from mixoff.widget.messages import visible

if TYPE_CHECKING:
    from mixoff.chat.chat import Chat


def repl(chat: "Chat") -> None:
    """Answer what is typed, until an empty line, the end of input or an interrupt at the prompt.

    An interrupt during a reply ends the reply. It works wherever Python has `input`.
    """
    print("An empty line ends the chat, an interrupt the reply.")
    while message := _asked():
        try:
            _answer(chat, message)
        except MixoffError as error:
            print(visible(str(error)))


def _asked() -> str:
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
