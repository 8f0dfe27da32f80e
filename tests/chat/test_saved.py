"""Changes of a running chat: settings, a regenerated reply, saving, restoring and closing."""

import json

import pytest
from transformers import AutoTokenizer

from mixoff import Chat, OffloadConfig, build_model, demo_path
from mixoff.cache import prefetcher_of
from mixoff.chat import Sampling
from mixoff.errors import CheckpointError, ConfigError, MixoffError

QUESTIONS = ["What is the capital of France?", "And what is the capital of Italy?"]


@pytest.fixture(scope="module")
def parts():
    model, cache = build_model(demo_path(), OffloadConfig(offload_per_layer=4))
    yield model, AutoTokenizer.from_pretrained(demo_path())
    cache.close()


@pytest.fixture
def chat(parts):
    return Chat(*parts, temperature=0, max_new_tokens=24, seed=0)


def say(chat, text):
    return "".join(chat.send(text))


# ---- settings


def test_settings_take_effect_with_the_next_reply(chat):
    reply = chat.send(QUESTIONS[0])
    next(reply)
    chat.sampling = Sampling(temperature=0, max_new_tokens=2)
    assert len([*reply]) > 2
    say(chat, QUESTIONS[1])
    assert (chat.last.new_tokens, chat.last.finish) == (2, "length")


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"max_new_tokens": 1.5}]
)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_changed_system_prompt_keeps_the_turns_and_replies_as_if_set_from_the_start(chat, parts):
    say(chat, QUESTIONS[0])
    turns = chat.messages
    chat.system = "You are a fox."
    assert chat.messages == [{"role": "system", "content": "You are a fox."}, *turns]
    always = Chat(*parts, system="You are a fox.", temperature=0, max_new_tokens=24)
    always._turns = chat._turns[:]
    assert say(chat, QUESTIONS[1]) == say(always, QUESTIONS[1])


def test_the_system_prompt_cant_change_while_a_reply_runs(chat):
    reply = chat.send(QUESTIONS[0])
    next(reply)
    with pytest.raises(MixoffError, match="A reply is running"):
        chat.system = "You are a fox."
    assert chat.is_replying
    reply.close()
    assert not chat.is_replying
    assert chat.system is None


def test_the_number_of_prefetched_experts_changes_during_a_reply_and_never_the_text(chat, parts):
    expected = say(chat, QUESTIONS[0])
    chat.reset()
    prefetcher, pieces = prefetcher_of(parts[0]), []
    with chat.cache.record() as trace:
        for number, piece in enumerate(chat.send(QUESTIONS[0])):
            prefetcher.experts = number % 3
            pieces.append(piece)
    prefetcher.experts = 0
    assert "".join(pieces) == expected
    assert (trace.to_frame()["kind"] == "prefetch").any()
    assert trace.provenance["prefetch"] == 0
    with pytest.raises(ConfigError, match=r"prefetch=9: .* 0 to 8"):
        prefetcher.experts = 9


def test_slots_change_between_two_tokens_and_never_the_text(chat):
    expected = say(chat, QUESTIONS[0])
    chat.reset()
    pieces = []
    for number, piece in enumerate(chat.send(QUESTIONS[0])):
        chat.cache.resize(1 + number % 8)
        pieces.append(piece)
    chat.cache.resize(4)
    assert "".join(pieces) == expected


# ---- another reply


def test_a_regenerated_reply_replaces_the_last_one(chat):
    chat.sampling = Sampling(temperature=3.0, top_p=1.0, max_new_tokens=16)
    say(chat, QUESTIONS[0])
    first, second = say(chat, QUESTIONS[1]), "".join(chat.regenerate())
    assert second != first
    assert [message["content"] for message in chat.messages[2:]] == [QUESTIONS[1], second]
    assert chat.last.prefilled_tokens < chat.last.prompt_tokens / 2  # the rest was kept


def test_at_temperature_0_a_regenerated_reply_is_the_same(chat):
    assert say(chat, QUESTIONS[0]) == "".join(chat.regenerate())
    assert len(chat.messages) == 2


def test_without_a_reply_there_is_nothing_to_regenerate(chat):
    with pytest.raises(MixoffError, match="no reply yet"):
        chat.regenerate()


def test_a_reply_is_kept_if_its_replacement_is_stopped_before_its_first_token(chat):
    before = say(chat, QUESTIONS[0])
    pieces = chat.regenerate()
    chat.stop()
    assert [*pieces] == []
    assert chat.messages[-1]["content"] == before
    assert say(chat, QUESTIONS[1])


# ---- saved and restored


def test_a_restored_conversation_goes_on_as_the_saved_one(chat, parts, tmp_path):
    chat.system = "Be brief."
    say(chat, QUESTIONS[0])
    chat.save(tmp_path / "talk.json")
    restored = Chat(*parts, temperature=0, max_new_tokens=24)
    say(restored, "Hello!")
    restored.restore(tmp_path / "talk.json")
    assert (restored.messages, restored.system) == (chat.messages, "Be brief.")
    assert say(restored, QUESTIONS[1]) == say(chat, QUESTIONS[1])


def test_names_of_control_tokens_in_a_saved_reply_are_text(chat, tmp_path):
    names = [*chat.tokenizer.special_tokens_map.values()]
    say(chat, QUESTIONS[0])
    chat.save(tmp_path / "talk.json")
    content = json.loads((tmp_path / "talk.json").read_text())
    content["turns"][0]["reply"] = f"Yes.{names[0]} {names[-1]}"
    (tmp_path / "talk.json").write_text(json.dumps(content))
    chat.restore(tmp_path / "talk.json")
    assert not {*chat._turns[0].reply} & {*chat.tokenizer.all_special_ids}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "other"}', "not a conversation saved by mixoff"),
        ('{"format": "mixoff-conversation", "version": 2}', "of version 2"),
        ('{"format": "mixoff-conversation", "version": 1, "turns": [{"user": 1}]}', "damaged"),
        ('{"format": "mixoff-conversation", "version": 1, "system": 5, "turns": []}', "damaged"),
        ("[]", "no JSON object"),
        ("{", "no JSON"),
    ],
)
def test_a_file_that_holds_no_conversation_is_refused_and_changes_nothing(
    chat, tmp_path, content, message
):
    say(chat, QUESTIONS[0])
    before = chat.messages
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        chat.restore(tmp_path / "talk.json")
    assert chat.messages == before


def test_a_file_that_cannot_be_written_is_refused(chat, tmp_path):
    with pytest.raises(MixoffError, match=r"can't be written \(No such file"):
        chat.save(tmp_path / "nowhere" / "talk.json")


# ---- how it is shown


def test_a_chat_is_shown_by_its_model_device_slots_and_turns(chat):
    assert repr(chat) == "Chat('demo-mixtral' on cpu, 4 slots for 8 experts per layer, 0 turns)"
    say(chat, QUESTIONS[0])
    chat.cache.resize(2)
    assert repr(chat) == "Chat('demo-mixtral' on cpu, 2 slots for 8 experts per layer, 1 turn)"
    chat.cache.resize(4)


def test_a_chat_with_a_refused_setting_can_be_shown(parts):
    model, tokenizer = parts
    refused = Chat.__new__(Chat)
    with pytest.raises(ConfigError, match="temperature"):
        refused.__init__(model, tokenizer, temperature=-1)
    assert repr(refused).startswith("Chat('demo-mixtral' on cpu")


def test_showing_a_chat_reads_nothing_of_the_model_and_its_cache(chat, monkeypatch):
    monkeypatch.setattr(type(chat.cache), "stats", None)
    monkeypatch.setattr(type(chat.model), "forward", None)
    assert "8 experts" in repr(chat)
