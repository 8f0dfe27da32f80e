"""A tokenizer's chat template: a conversation's text as token ids. Knows nothing of models."""

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jinja2

from mixoff.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template:
    """Encodes a conversation with the tokenizer's chat template.

    Ordinary text gets the ids of `apply_chat_template`. Control tokens (special tokens, and added
    tokens that the template writes) result from the template alone: their names in a message are
    encoded as ordinary text. If the template has no system role, the system prompt is put before
    the first message.

    Raises
    ------
    ConfigError
        If the tokenizer has no template, or one that doesn't write each message exactly once.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", system: str | None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, and a chat needs "
                "one: take an instruction-tuned model's, or set tokenizer.chat_template."
            )
        self._tokenizer = tokenizer
        self._system = system
        self._nonce = secrets.token_hex(16)  # unguessable, so no message holds a mark
        self._marks = re.compile(rf"{self._nonce}-(\d+)-")
        self._find_control_tokens()
        self._takes_system = True  # tried by the rendering in `_keeps_all`
        self._takes_system = system is None or self._keeps_all(turns=1)
        if not self._keeps_all(turns=2):
            raise ConfigError(
                f"The chat template of {tokenizer.name_or_path!r} refuses, leaves out or repeats "
                "messages: set tokenizer.chat_template to one that writes each message once."
            )

    def encode(self, users: Sequence[str], replies: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids up to the next reply's start.

        Parameters
        ----------
        users, replies
            Messages; the ids of all replies but the next, without their end of sequence.

        Raises
        ------
        ConfigError
            If the tokenizer can't encode a control token's name as ordinary text.
        """
        contents = [self._system or "", *users]
        texts = self._render(contents)
        marked = self._render([self._mark(index) for index in range(len(contents))])
        ids: list[int] = []
        for text, form, reply in zip(texts, marked, [*replies, ()], strict=True):
            ids += [*self._encode_part(text, self._marks.split(form), contents), *reply]
        return ids

    def encode_reply(self, text: str) -> list[int]:
        """Return the ids of a reply's text, with names of control tokens as ordinary text."""
        ids = self._ids(text)
        return self._plain_ids(text) if self._controls(ids) else ids

    def _find_control_tokens(self) -> None:
        source = self._tokenizer.get_chat_template()
        self._control = {
            token.content: index
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in source and not token.content.isspace())
        }
        # Ordinary text has the unknown token, too: for unknown characters.
        self._control_ids = {*self._control.values()} - {self._tokenizer.unk_token_id}
        names = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(names) or '(?!)'})")

    def _mark(self, name: int | str) -> str:
        return f"{self._nonce}-{name}-"

    def _keeps_all(self, turns: int) -> bool:
        """Return whether the template writes the system prompt and each message once, in order."""
        try:
            parts = self._render([self._mark(index) for index in range(turns + 1)])
        except jinja2.TemplateError:
            return False
        marks = [self._marks.findall(part) for part in parts]  # "0" marks the system prompt
        systems = sum(part.count("0") for part in marks)  # it may be written in any turn
        users = [[index for index in part if index != "0"] for part in marks]
        expected = [[str(turn)] for turn in range(1, turns + 1)]
        return (systems, users) == (self._system is not None, expected)

    def _render(self, contents: Sequence[str]) -> list[str]:
        """Return the text before each reply; contents are the system prompt and the messages."""
        system, *users = contents
        messages = []
        if self._system is not None and self._takes_system:
            messages.append({"role": "system", "content": system})
        elif self._system is not None:
            users[0] = f"{system}\n\n{users[0]}"
        for user in users:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": self._mark("reply")})
        render = self._tokenizer.apply_chat_template
        text = str(render(messages[:-1], tokenize=False, add_generation_prompt=True))
        *parts, last = text.split(self._mark("reply"))
        if not last[-1:].isspace():  # the model generates the space before a reply, as its part
            parts = [part.rstrip() for part in parts]
        return [*parts, last]

    def _encode_part(self, text: str, form: list[str], contents: Sequence[str]) -> list[int]:
        """Return the ids of the text before a reply.

        `form` alternates the template's own text and an index into `contents`.
        """
        inserted = [contents[int(index)] for index in form[1::2]]
        control = [index for piece in form[::2] for index in self._controls(self._ids(piece))]
        ids = self._ids(text)
        has_names = any(name in content for content in inserted for name in self._control)
        if not has_names and self._controls(ids) == control:
            return ids
        trimmed = [content if content in text else content.strip() for content in inserted]
        ids = self._spell_out(form[::2], trimmed)
        if self._controls(ids) != control:
            raise ConfigError(
                "The tokenizer encodes part of a message or of the system prompt as a control "
                f"token, even as ordinary text: leave out {', '.join(self._control)}."
            )
        return ids

    def _controls(self, ids: list[int]) -> list[int]:
        return [index for index in ids if index in self._control_ids]

    def _ids(self, text: str, *, split: bool = False) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
        return list(ids)

    def _spell_out(self, template: list[str], contents: list[str]) -> list[int]:
        """Return ids with control tokens only where the template names them."""
        ids, span = [], ""
        for fixed, content in zip(template, [*contents, ""], strict=True):
            head, *rest = self._names.split(fixed)  # text, name, text, name ... text
            span += head
            for name, following in zip(rest[::2], rest[1::2], strict=True):
                ids += [*self._plain_ids(span), self._control[name]]
                span = following
            span += content
        return ids + self._plain_ids(span)

    def _plain_ids(self, text: str) -> list[int]:
        """Return ids without any added token; `split_special_tokens` splits special ones only."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self._ids(text, split=True)
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]
