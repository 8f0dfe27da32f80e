"""A chat with a tiny random Mixtral: streams, the kept KV cache, interrupts, full contexts."""

import gc
import itertools
import math
import threading
import time
from dataclasses import replace

import pytest
import torch

import mixoff.chat.reply
from mixoff.chat.chat import Chat
from mixoff.chat.reply import ReplyStats
from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError, MixoffError
from mixoff.models.build import build_model
from support.chats import (
    FORGED,
    SYSTEM_LAST,
    TEXT,
    byte_level_tokenizer,
    decode,
    tiny_model,
)
from support.tiny import EXACT

STEPS = 4
QUESTIONS = ["Hello there", "What is a cache, é?", "Say more, please"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


class Spy:
    """Records the ids that a model reads, and raises before one chosen call of a module."""

    def __init__(self, model, module=None, *, at=None, error=KeyboardInterrupt):
        self.calls, self.read = 0, []
        self.handles = [
            model.register_forward_pre_hook(self.note, with_kwargs=True),
            (module or model).register_forward_pre_hook(self.count, with_kwargs=True),
        ]
        self.at, self.error = at, error

    def note(self, module, args, options):
        self.read.append((args[0] if args else options["input_ids"])[0].tolist())

    def count(self, module, args, options):
        self.calls += 1
        if self.calls - 1 == self.at:
            raise self.error("injected")

    def remove(self):
        for handle in self.handles:
            handle.remove()


def force(model, tokens):
    """Make these the model's next tokens; the call after the last raises StopIteration."""
    tokens = iter(tokens)

    def make_certain(module, args, out):
        out.logits[..., next(tokens)] = 99.0

    return model.register_forward_hook(make_certain)


def greedy(model, ids, steps, ends=(2,)):
    """Return the ids of a greedy reply, each token from a prefill of all tokens before it."""
    reply = []
    while len(reply) < steps:
        with torch.no_grad():
            token = int(model(torch.tensor([ids + reply]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        reply.append(token)
    return reply


def question_ids(tokenizer, question, *, first=False):
    start = "<s>" if first else "</s>"
    return tokenizer.encode(f"{start}[INST] {question} [/INST]", add_special_tokens=False)


def converse(model, tokenizer, questions, steps, ends=(2,)):
    """Return [(prompt ids, reply ids)] of a whole greedy conversation without any KV cache."""
    ids, turns = [], []
    for question in questions:
        ids = ids + question_ids(tokenizer, question, first=not ids)
        turns.append((ids, greedy(model, ids, steps, ends)))
        ids = ids + turns[-1][1]
    return turns


def say(chat, text):
    return "".join(chat.send(text))


# --- streaming ------------------------------------------------------------------------------------


def test_the_pieces_of_a_reply_are_the_text_of_the_ids_that_generate_makes(model, tokenizer):
    prompt = torch.tensor([question_ids(tokenizer, "Hello", first=True)])
    whole = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False
    )
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=20)
    pieces = list(chat.send("Hello"))
    assert len(pieces) > 3
    assert "".join(pieces) == decode(tokenizer, whole[0, prompt.shape[1] :].tolist())
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(pieces)}


@pytest.mark.parametrize("several", [False, True])
def test_a_reply_ends_at_the_models_end_of_sequence(model, tokenizer, several):
    reply = greedy(model, question_ids(tokenizer, "Hello", first=True), 12)
    end = next(token for token in reply[3:] if token not in reply[:3])
    model.generation_config.eos_token_id = [2, end] if several else end
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=12)
    kept = reply[: reply.index(end)]
    assert say(chat, "Hello") == decode(tokenizer, kept)
    assert (chat.last.finish, chat.last.new_tokens) == ("stop", len(kept) + 1)


def test_special_tokens_are_never_streamed(model, tokenizer):
    spy = Spy(model)
    handle = force(model, [3, 3, 3, 3])
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=4)
    assert list(chat.send("Hello")) == []
    assert spy.read[1:] == [[3], [3], [3]]
    handle.remove()
    say(chat, "And now?")  # they stay in the model's context
    assert chat.last.prefilled_tokens == 1 + len(question_ids(tokenizer, "And now?"))


def test_a_chat_keeps_the_callers_grad_mode(model, tokenizer):
    for _ in Chat(model, tokenizer, max_new_tokens=3).send("Hello"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


# --- the KV cache between turns -------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 6, 15])
def test_greedy_replies_are_those_of_a_prefill_from_scratch_each_turn(model, tokenizer, length):
    expected = converse(model, tokenizer, QUESTIONS, length)
    spy = Spy(model)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=length)
    for question, (prompt, reply) in zip(QUESTIONS, expected, strict=True):
        assert say(chat, question) == decode(tokenizer, reply)
        assert chat.last.prompt_tokens == len(prompt)
    read = [i for ids in spy.read for i in ids]
    assert read == expected[-1][0] + expected[-1][1][:-1]  # each token read once


def test_only_new_tokens_are_prefilled(model, tokenizer):
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=6)
    say(chat, QUESTIONS[0])
    assert chat.last.prefilled_tokens == chat.last.prompt_tokens
    for question in QUESTIONS[1:]:
        say(chat, question)  # the last token of the previous reply was drawn, but not read
        assert chat.last.prefilled_tokens == 1 + len(question_ids(tokenizer, question))


def test_after_an_end_of_sequence_only_the_templates_text_is_prefilled(model, tokenizer):
    reply = greedy(model, question_ids(tokenizer, "Hello", first=True), 12)
    model.generation_config.eos_token_id = next(t for t in reply[3:] if t not in reply[:3])
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=12)
    say(chat, "Hello")
    say(chat, "And?")
    assert chat.last.prefilled_tokens == len(question_ids(tokenizer, "And?"))


def test_chunks_of_a_long_prefill_never_change_the_reply(model, tokenizer, monkeypatch):
    whole = say(Chat(model, tokenizer, temperature=0, max_new_tokens=8), TEXT[:200])
    monkeypatch.setattr(mixoff.chat.reply, "PREFILL_TOKENS", 7)
    spy = Spy(model)
    assert say(Chat(model, tokenizer, temperature=0, max_new_tokens=8), TEXT[:200]) == whole
    assert len(spy.read[0]) == len(spy.read[1]) == 7


def test_a_sliding_window_gives_the_replies_of_a_prefill_from_scratch(tokenizer):
    model = tiny_model(tokenizer, sliding_window=8)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=6)
    expected = converse(model, tokenizer, QUESTIONS, 6)
    assert [say(chat, q) for q in QUESTIONS] == [decode(tokenizer, reply) for _, reply in expected]


def test_a_template_that_rewrites_earlier_turns_still_gets_its_own_ids(tokenizer):
    tokenizer = byte_level_tokenizer(SYSTEM_LAST)
    model = tiny_model(tokenizer)
    chat = Chat(model, tokenizer, system="Be brief.", temperature=0, max_new_tokens=5)
    ids = tokenizer.encode("<s>[INST] Be brief.\n\nOne[/INST]", add_special_tokens=False)
    reply = greedy(model, ids, 5)
    assert say(chat, "One") == decode(tokenizer, reply)
    start = tokenizer.encode("<s>[INST] One[/INST]", add_special_tokens=False)
    end = tokenizer.encode("</s>[INST] Be brief.\n\nTwo[/INST]", add_special_tokens=False)
    assert say(chat, "Two") == decode(tokenizer, greedy(model, start + reply + end, 5))
    assert chat.last.prompt_tokens == len(start + reply + end)


# --- sampling -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_replies(model, tokenizer):
    def replies(seed):
        chat = Chat(model, tokenizer, seed=seed, temperature=1.5, max_new_tokens=8)
        return [say(chat, question) for question in QUESTIONS]

    assert replies(3) == replies(3)
    assert replies(3) != replies(4)


def test_without_a_seed_two_chats_differ(model, tokenizer):
    chats = [Chat(model, tokenizer, temperature=2.0, max_new_tokens=12) for _ in range(2)]
    assert say(chats[0], "Hello") != say(chats[1], "Hello")


def test_a_seeds_replies_dont_depend_on_the_kept_kv_cache(model, tokenizer):
    kept, lost = (Chat(model, tokenizer, seed=1, max_new_tokens=8) for _ in range(2))
    for question in QUESTIONS:
        lost._context = type(lost._context)(model)
        assert say(kept, question) == say(lost, question)
        assert lost.last.prefilled_tokens == lost.last.prompt_tokens


def test_a_reset_chat_repeats_its_replies(model, tokenizer):
    chat = Chat(model, tokenizer, seed=1, system="Be brief.", max_new_tokens=8)
    before = [say(chat, question) for question in QUESTIONS]
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.last is None
    assert [say(chat, question) for question in QUESTIONS] == before


def test_no_reply_begins_while_a_chat_is_kept_idle(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=8)
    pieces = chat.send("Hello")
    with chat.idle(), pytest.raises(MixoffError, match="reply is running"):
        next(pieces)
    assert say(chat, "Hello")


def test_a_replying_chat_cant_be_kept_idle(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=8)
    pieces = chat.send("Hello")
    next(pieces)
    with pytest.raises(MixoffError, match="reply is running"), chat.idle():
        pass
    pieces.close()
    with chat.idle():
        assert not chat.messages[2:]


def test_two_replies_of_a_chat_dont_draw_the_same_numbers(model, tokenizer):
    model.register_forward_hook(lambda module, args, out: replace(out, logits=0 * out.logits))
    chat = Chat(model, tokenizer, seed=1, top_p=1, max_new_tokens=8)
    assert say(chat, "Hello") != say(chat, "Hello")


# --- cut short ------------------------------------------------------------------------------------


def assert_continues(model, tokenizer, chat, streamed, expected):
    """Assert that the streamed part is kept, and that the next reply is that of a fresh prefill."""
    prompt, reply = expected
    kept = next(n for n in range(len(reply) + 1) if decode(tokenizer, reply[:n]) == streamed)
    assert chat.messages[-2:] == [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": streamed},
    ]
    assert chat.last.finish == "stopped"
    context = prompt + reply[:kept] + question_ids(tokenizer, "Go on")
    assert say(chat, "Go on") == decode(tokenizer, greedy(model, context, STEPS))
    assert chat.last.prompt_tokens == len(context)


@pytest.mark.parametrize("where", ["before", "inside"])
@pytest.mark.parametrize("window", [None, 8])
def test_an_interrupt_at_any_call_of_the_model_leaves_a_chat_that_goes_on(
    tokenizer, monkeypatch, where, window
):
    monkeypatch.setattr(mixoff.chat.reply, "PREFILL_TOKENS", 6)
    model = tiny_model(tokenizer, sliding_window=window)
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    calls = math.ceil(len(expected[0]) / 6) + 3  # the last token is drawn, not read
    for call in range(calls):
        module = model if where == "before" else model.model.layers[1].self_attn
        spy = Spy(model, module, at=call)
        chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
        streamed = []
        with pytest.raises(KeyboardInterrupt):
            streamed.extend(chat.send(QUESTIONS[0]))
        spy.remove()
        assert_continues(model, tokenizer, chat, "".join(streamed), expected)
        if window is None:  # all ids read before the interrupted call are reused
            reused = chat.last.prompt_tokens - chat.last.prefilled_tokens
            assert reused == sum(map(len, spy.read[:call]))
    Spy(model, at=calls)
    assert say(Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS), QUESTIONS[0])


def test_closing_the_iterator_anywhere_leaves_a_chat_that_goes_on(model, tokenizer):
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    for taken in range(1, STEPS + 1):
        chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
        pieces = chat.send(QUESTIONS[0])
        streamed = "".join(itertools.islice(pieces, taken))
        pieces.close()
        assert_continues(model, tokenizer, chat, streamed, expected)


def test_a_loop_that_breaks_leaves_a_chat_that_goes_on(model, tokenizer):
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    for piece in chat.send(QUESTIONS[0]):  # noqa: B007
        break
    gc.collect()
    assert_continues(model, tokenizer, chat, piece, expected)


def test_stop_ends_the_reply_before_the_model_is_called_again(model, tokenizer):
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    spy = Spy(model)
    pieces = []
    for piece in chat.send(QUESTIONS[0]):
        pieces.append(piece)
        if len(pieces) == 2:
            calls = spy.calls
            chat.stop()
    assert (len(pieces), spy.calls) == (2, calls)
    assert_continues(model, tokenizer, chat, "".join(pieces), expected)


def test_stop_from_another_thread_ends_the_reply(model, tokenizer):
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=10_000)
    started, pieces = threading.Event(), []

    def read():
        for piece in chat.send("Hello"):
            pieces.append(piece)
            started.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(20)
    chat.stop()
    reader.join(20)
    assert not reader.is_alive()
    assert chat.messages[-1]["content"] == "".join(pieces)


def test_stop_during_a_prefill_leaves_an_empty_reply(model, tokenizer, monkeypatch):
    monkeypatch.setattr(mixoff.chat.reply, "PREFILL_TOKENS", 3)
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    handle = model.register_forward_hook(lambda *_: chat.stop())
    assert say(chat, QUESTIONS[0]) == ""
    handle.remove()
    assert (chat.last.prefilled_tokens, chat.last.new_tokens) == (3, 0)
    assert_continues(model, tokenizer, chat, "", expected)


def test_half_a_character_isnt_kept_when_a_reply_is_cut_short(model, tokenizer):
    letters = tokenizer.encode("ab", add_special_tokens=False)
    half = tokenizer.encode("ß", add_special_tokens=False)[:1]
    handle = force(model, [*letters, *half])
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=9)
    streamed = []
    with pytest.raises((RuntimeError, StopIteration)):
        streamed.extend(chat.send("Hello"))
    handle.remove()
    assert "".join(streamed) == "ab" == chat.messages[-1]["content"]
    say(chat, "Go on")
    hello = question_ids(tokenizer, "Hello", first=True)
    assert chat.last.prompt_tokens == len(hello + letters + question_ids(tokenizer, "Go on"))


def test_an_error_during_prefill_removes_the_message(model, tokenizer, monkeypatch):
    monkeypatch.setattr(mixoff.chat.reply, "PREFILL_TOKENS", 3)
    expected = converse(model, tokenizer, QUESTIONS, STEPS)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    say(chat, QUESTIONS[0])
    before, last = chat.messages, chat.last
    spy = Spy(model, model.model.layers[1], at=1, error=RuntimeError)
    with pytest.raises(RuntimeError, match="injected"):
        say(chat, "This one is lost, isn't it?")
    spy.remove()
    assert (chat.messages, chat.last) == (before, last)
    assert [say(chat, q) for q in QUESTIONS[1:]] == [
        decode(tokenizer, reply) for _, reply in expected[1:]
    ]


def test_a_message_whose_first_token_couldnt_be_drawn_can_be_sent_again(model, tokenizer):
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    broken = model.register_forward_hook(
        lambda _, args, out: replace(out, logits=math.nan * out.logits)
    )
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    with pytest.raises(MixoffError, match="nan"):
        say(chat, QUESTIONS[0])
    broken.remove()
    assert chat.messages == []
    assert say(chat, QUESTIONS[0]) == decode(tokenizer, expected[1])
    assert chat.last.prefilled_tokens == 1  # the last id is read again, for its logits


def test_an_error_in_the_middle_of_a_reply_keeps_the_streamed_part(model, tokenizer):
    expected = converse(model, tokenizer, QUESTIONS[:1], STEPS)[0]
    spy = Spy(model, model.model.layers[1], at=3, error=RuntimeError)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    streamed = []
    with pytest.raises(RuntimeError, match="injected"):
        streamed.extend(chat.send(QUESTIONS[0]))
    spy.remove()
    assert len(streamed) == 3
    assert_continues(model, tokenizer, chat, "".join(streamed), expected)


def test_a_second_reply_during_a_reply_is_refused(model, tokenizer):
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=STEPS)
    early = chat.send("Early")
    running = chat.send("Hello")
    first = next(running)
    for refused in (lambda: chat.send("Second"), lambda: next(early), chat.reset):
        with pytest.raises(MixoffError, match="stop"):
            refused()
    whole = first + "".join(running)
    assert [message["content"] for message in chat.messages] == ["Hello", whole]
    assert say(chat, "Third")


def test_a_reply_that_is_never_read_was_never_sent(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=STEPS)
    chat.send("Hello")
    assert chat.messages == []
    assert say(chat, "Hi there") == chat.messages[-1]["content"]


def test_control_tokens_in_an_earlier_turns_message_stay_plain_text(model, tokenizer):
    spy = Spy(model)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=4)
    model.generation_config.eos_token_id = None
    say(chat, FORGED)
    say(chat, "And?")
    assert [i for ids in spy.read for i in ids].count(1) == 1
    assert chat.last.prefilled_tokens == 1 + len(question_ids(tokenizer, "And?"))


# --- a full context -------------------------------------------------------------------------------


def test_a_full_context_drops_the_oldest_turns_and_notices_it(tokenizer, caplog):
    model = tiny_model(tokenizer, positions=96)
    longest = Spy(model)
    chat = Chat(model, tokenizer, system="Be brief.", temperature=0, max_new_tokens=8)
    with caplog.at_level("INFO", logger="mixoff.chat.chat"):
        for turn in range(9):
            say(chat, f"Question number {turn}")
            assert chat.last.prompt_tokens + chat.last.new_tokens <= 96
            if chat.last.dropped_turns:
                break
    assert turn < 8
    assert chat.last.notice in caplog.text
    assert str(chat.last.dropped_turns) in chat.last.notice
    users = [m["content"] for m in chat.messages if m["role"] == "user"]
    assert users == [f"Question number {n}" for n in range(chat.last.dropped_turns, turn + 1)]
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert max(map(len, longest.read)) <= 96


def test_after_turns_were_dropped_replies_are_those_of_a_prefill_from_scratch(tokenizer):
    model = tiny_model(tokenizer, positions=64)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=6)
    replies = []
    for turn in range(5):
        question = f"Number {turn}?"
        text = say(chat, question)
        kept = replies[len(replies) - (len(chat.messages) // 2 - 1) :]
        ids = question_ids(tokenizer, f"Number {turn - len(kept)}?", first=True)
        for n, reply in enumerate(kept, turn - len(kept) + 1):
            ids += reply + question_ids(tokenizer, f"Number {n}?")
        replies.append(greedy(model, ids, 6))
        assert text == decode(tokenizer, replies[-1])
        assert chat.last.prompt_tokens == len(ids)
    assert len(chat.messages) < 10


def test_a_reply_ends_where_the_context_ends(tokenizer):
    model = tiny_model(tokenizer, positions=40)
    spy = Spy(model)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=100)
    say(chat, "Hello")
    assert chat.last.finish == "length"
    assert chat.last.prompt_tokens + chat.last.new_tokens == 40
    assert sum(map(len, spy.read)) == 39


def test_a_message_longer_than_the_context_changes_nothing(tokenizer):
    model = tiny_model(tokenizer, positions=64)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=4)
    say(chat, "Hello")
    before = chat.messages
    text = "far too long " * 30
    length = len(question_ids(tokenizer, text, first=True))
    with pytest.raises(ConfigError, match=rf"{length} tokens.*\b64\b"):
        chat.send(text)
    assert chat.messages == before
    assert say(chat, "Short")


# --- statistics -------------------------------------------------------------------------------


def test_times_hold_the_prefill_apart_and_exclude_the_readers(model, tokenizer):
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=4)
    slow = model.register_forward_hook(lambda *_: time.sleep(0.1))
    began = time.perf_counter()
    for _ in chat.send("Hello"):
        slow.remove()  # only the prefill was slow
        time.sleep(0.1)  # a slow reader
    seconds, first = chat.last.seconds, chat.last.seconds_to_first_token
    assert 0.1 <= first < seconds <= time.perf_counter() - began - 0.4
    assert chat.last.tokens_per_second == pytest.approx(3 / (seconds - first))


def test_a_reply_of_one_token_has_no_decode_rate():
    stats = ReplyStats(5, 5, 1, 2.0, 2.0, "length", None, 0, None)
    assert stats.tokens_per_second == 0


def test_a_plain_model_has_no_cache_statistics(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=3)
    say(chat, "Hello")
    assert chat.last.cache is None


def test_a_model_with_an_expert_cache_reports_the_counts_of_each_reply(quantized, tokenizer):
    offload = OffloadConfig(offload_per_layer=6)
    folder = quantized(EXACT, vocab_size=len(tokenizer), max_position_embeddings=256)
    model, expert_cache = build_model(folder, offload)
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=4)
    say(chat, "Hello")
    assert chat.last.cache == expert_cache.stats()
    before = expert_cache.stats()
    say(chat, "And now?")
    assert chat.last.cache == expert_cache.stats() - before
    assert chat.last.cache.misses > 0
