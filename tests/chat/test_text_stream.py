"""Streamed text equals decoded text, and no incomplete character is streamed."""

import random

import pytest

from mixoff.chat.text_stream import TextStream
from support.chats import byte_fallback_tokenizer, byte_level_tokenizer, decode


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_a_character_is_streamed_only_when_all_its_bytes_have_arrived(make):
    tokenizer = make()
    stream = TextStream(tokenizer)
    text = "naïve 你好, 🙂👩‍👧!\n\n  done"
    pieces = [stream.push(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert "".join([*pieces, stream.finish()]) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # a character was held back
    assert len([piece for piece in pieces if piece]) > 5  # but not the whole text


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_streamed_text_equals_decoded_text_even_for_random_ids(make):
    tokenizer, rng = make(), random.Random(5)
    for _ in range(100):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 25))]
        stream = TextStream(tokenizer)
        pieces = [stream.push(token) for token in ids]
        assert "".join([*pieces, stream.finish()]) == decode(tokenizer, ids)
        assert stream.ids == ids
        assert not any(piece.endswith("\ufffd") for piece in pieces)
