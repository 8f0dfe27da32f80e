"""A loaded chat frees the one before, and a closed chat its model."""

import gc
import threading
import weakref

import pytest

from mixoff import OffloadConfig, demo_path, load_chat
from mixoff.errors import MixoffError

QUESTIONS = ["What is the capital of France?", "And what is the capital of Italy?"]


def say(chat, text):
    return "".join(chat.send(text))


def loaded():
    return load_chat(demo_path(), OffloadConfig(offload_per_layer=4), temperature=0)


def test_loading_again_frees_the_model_of_the_call_before():
    chat = loaded()
    say(chat, QUESTIONS[0])
    model, cache = weakref.ref(chat.model), chat.cache
    second = loaded()
    gc.collect()
    assert model() is None
    assert chat.is_closed
    assert chat.cache is None
    assert len(chat.messages) == 2
    with pytest.raises(MixoffError, match="was closed"):
        chat.send(QUESTIONS[1])
    with pytest.raises(MixoffError, match="closed"):
        cache.acquire(0, [0])
    assert "Paris" in say(second, QUESTIONS[0])
    second.close()
    second.close()


def test_a_reply_in_another_thread_ends_when_the_chat_is_closed():
    chat, ended = loaded(), threading.Event()
    started = threading.Event()

    def read():
        for _ in chat.send("Tell me a story about a fox."):
            started.set()
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(30)
    chat.close()
    thread.join(30)
    assert ended.is_set()
    assert chat.messages[-1]["content"]


def test_a_reply_whose_iterator_is_no_longer_read_does_not_keep_a_chat_from_closing(monkeypatch):
    monkeypatch.setattr("mixoff.chat.chat._PATIENCE_S", 0.1)
    chat = loaded()
    reply = chat.send(QUESTIONS[0])
    next(reply)
    chat.close()
    assert [*reply] == []
    assert not chat.is_replying


def test_a_chat_is_shown_while_it_replies_and_after_it_was_closed():
    chat = loaded()
    reply = chat.send(QUESTIONS[0])
    next(reply)
    assert repr(chat) == "Chat('demo-mixtral' on cpu, 4 slots for 8 experts per layer, 1 turn)"
    reply.close()
    chat.close()
    assert repr(chat) == "Chat('demo-mixtral', closed, 1 turn)"
