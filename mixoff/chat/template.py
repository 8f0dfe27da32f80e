"""A tokenizer's chat template. Knows text and ids; nothing of models."""

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

    Ordinary text gets the ids of `apply_chat_template`. Control tokens (special ones, and those
    added ones that the template writes) come from the template alone: their names, typed by
    somebody, are spelled out. A system prompt goes before the first message if it has no role.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", system: str | None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, and a chat needs "
                "one: take an instruction-tuned model's, or set tokenizer.chat_template."
            )
        self._tokenizer = tokenizer
        self._system = system
        self._nonce = secrets.token_hex(16)  # nobody can type a mark
        self._marks = re.compile(rf"{self._nonce}-(\d+)-")
        self._find_control_tokens()
        self._takes_system = True
        self._takes_system = system is None or self._keeps_all(turns=1)
        if not self._keeps_all(turns=2):
            raise ConfigError(
                f"The chat template of {tokenizer.name_or_path!r} refuses, leaves out or repeats "
                "messages: set tokenizer.chat_template to one that writes each message once."
            )

    def encode(self, users: Sequence[str], replies: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids up to where the next reply begins; replies lack their end of sequence."""
        contents = [self._system or "", *users]
        texts = self._render(contents)
        forms = self._render([self._mark(index) for index in range(len(contents))])
        ids: list[int] = []
        for text, form, reply in zip(texts, forms, [*replies, ()], strict=True):
            ids += [*self._encode_part(text, self._marks.split(form), contents), *reply]
        return ids

    def encode_reply(self, text: str) -> list[int]:
        """Return the ids of a reply that somebody wrote down; names of control tokens are text."""
        ids = self._ids(text)
        return self._plain_ids(text) if self._controls(ids) else ids

    def _find_control_tokens(self) -> None:
        source = self._tokenizer.get_chat_template()
        self._control = {
            token.content: index
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.special or (token.content in source and not token.content.isspace())
        }
        # Unknown characters give the unknown token in ordinary text, too.
        self._control_ids = {*self._control.values()} - {self._tokenizer.unk_token_id}
        names = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(names) or '(?!)'})")

    def _mark(self, name: int | str) -> str:
        return f"{self._nonce}-{name}-"

    def _keeps_all(self, turns: int) -> bool:
        """Whether the template writes the system prompt and each message once, in its turn."""
        try:
            parts = self._render([self._mark(index) for index in range(turns + 1)])
        except jinja2.TemplateError:
            return False
        found = [self._marks.findall(part) for part in parts]
        systems = sum(part.count("0") for part in found)  # it may stand in any turn
        users = [[index for index in part if index != "0"] for part in found]
        expected = [[str(turn)] for turn in range(1, turns + 1)]
        return (systems, users) == (self._system is not None, expected)

    def _render(self, contents: Sequence[str]) -> list[str]:
        """Return what stands before each reply; contents are the system prompt and the users'."""
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
        if not last[-1:].isspace():  # then the space before a reply was generated with it
            parts = [part.rstrip() for part in parts]
        return [*parts, last]

    def _encode_part(self, text: str, form: list[str], contents: Sequence[str]) -> list[int]:
        """Encode what stands before a reply; form is template, index of content, template ..."""
        inserted = [contents[int(index)] for index in form[1::2]]
        control = [index for piece in form[::2] for index in self._controls(self._ids(piece))]
        ids = self._ids(text)
        typed = any(name in content for content in inserted for name in self._control)
        if not typed and self._controls(ids) == control:
            return ids
        trimmed = [content if content in text else content.strip() for content in inserted]
        ids = self._spell_out(form[::2], trimmed)
        if self._controls(ids) != control:
            raise ConfigError(
                "The tokenizer turns part of a message or of the system prompt into a control "
                f"token even when it is spelled out: leave out {', '.join(self._control)}."
            )
        return ids

    def _controls(self, ids: list[int]) -> list[int]:
        return [index for index in ids if index in self._control_ids]

    def _ids(self, text: str, *, split: bool = False) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
        return list(ids)

    def _spell_out(self, template: list[str], contents: list[str]) -> list[int]:
        """Encode with control tokens only where the template names them."""
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
        """Encode with no added token at all; `split_special_tokens` still finds the not special."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self._ids(text, split=True)
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]
