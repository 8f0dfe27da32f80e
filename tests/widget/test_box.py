"""The chat box without a browser: its controls act on a real chat, and its widgets show it."""

import _thread
import gc
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import ipywidgets
import pytest
import torch
from transformers import AutoTokenizer

from mixoff.cache.prefetcher import prefetcher_of
from mixoff.chat.chat import Chat
from mixoff.config import OffloadConfig
from mixoff.errors import MixoffError
from mixoff.known_models import demo_path
from mixoff.models.build import build_model
from mixoff.widget import ChatWidget, repl
from mixoff.widget.worker import Throttle
from support.chats import byte_level_tokenizer, tiny_model
from support.html_page import Page
from support.pausable_model import ModelPause, paused, until

QUESTION = "Why is the sky blue?"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_path())


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    model, cache = build_model(demo_path(), OffloadConfig(offload_per_layer=4))
    yield model
    cache.close()


@pytest.fixture
def chat(model, tokenizer) -> Chat:
    chat = Chat(model, tokenizer, temperature=0, max_new_tokens=8)
    chat.cache.resize(4)
    prefetcher_of(model).experts = 0
    return chat


@pytest.fixture
def box(chat) -> Iterator[ChatWidget]:
    box = ChatWidget(chat)
    yield box
    box.close()


def log(box: ChatWidget) -> str:
    return Page(box.controls.log.value).text


def status(box: ChatWidget) -> str:
    return Page(box.controls.status.value).text


def bubbles(box: ChatWidget) -> tuple[int, int]:
    """Return the numbers of messages and of finished replies that a box shows."""
    page = Page(box.controls.log.value)
    return page.count("mixoff-user"), page.count("mixoff-reply")


def type_and_send(box: ChatWidget, text: str = QUESTION) -> None:
    box.controls.message.value = text
    box.controls.send.click()


def is_idle(box: ChatWidget) -> bool:
    controls = box.controls
    return controls.stop.disabled and not (
        controls.send.disabled or controls.regenerate.disabled or controls.clear.disabled
    )


def begin_reply(box: ChatWidget, pause: ModelPause, pieces: int = 1) -> None:
    """Send a message, and permit so many calls of the model."""
    type_and_send(box)
    for _ in range(pieces):
        pause.step()


# Messages and replies


def test_a_message_and_its_reply_are_shown(box, chat):
    reply = box.ask(QUESTION)
    assert reply
    assert [m["content"].strip() for m in chat.messages] == [QUESTION, reply]
    assert QUESTION in log(box)
    assert reply in log(box)
    assert bubbles(box) == (1, 1)
    assert f"{chat.last.new_tokens} tokens" in status(box)


def test_a_click_returns_before_the_reply_begins(box, model):
    with paused(model) as pause:
        type_and_send(box)
        assert not box.controls.stop.disabled
        assert box.controls.message.value == ""
        assert bubbles(box) == (1, 0)
        pause.resume()
        box.wait()
    assert bubbles(box) == (1, 1)


def test_stop_ends_a_reply_within_one_token(box, chat, model):
    with paused(model) as pause:
        begin_reply(box, pause, pieces=3)
        box.controls.stop.click()
        pause.resume()
        box.wait()
    assert chat.last.finish == "stopped"
    assert chat.last.new_tokens == 4
    assert "Stopped" in status(box)
    assert is_idle(box)


def test_stop_before_the_first_token_is_not_lost(box, chat, model):
    with paused(model) as pause:
        type_and_send(box)
        box.controls.stop.click()
        pause.resume()
        box.wait()
    assert chat.last is None or chat.last.finish == "stopped"
    assert is_idle(box)


def test_only_stop_is_enabled_while_a_reply_runs(box, model):
    controls = box.controls
    buttons = (controls.send, controls.regenerate, controls.clear, controls.save, controls.restore)
    assert is_idle(box)
    with paused(model) as pause:
        begin_reply(box, pause)
        assert all(button.disabled for button in buttons)
        assert not controls.stop.disabled
    box.wait()
    assert not any(button.disabled for button in buttons)
    assert is_idle(box)


def test_regenerate_replaces_the_last_reply(box, chat):
    box.ask(QUESTION)
    chat.sampling = type(chat.sampling)(temperature=1.5, top_p=1.0, max_new_tokens=8)
    box.controls.regenerate.click()
    box.wait()
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert bubbles(box) == (1, 1)
    assert chat.messages[-1]["content"].strip() in log(box)


def test_without_a_reply_there_is_nothing_to_regenerate(box):
    box.controls.regenerate.click()
    assert "no reply yet" in status(box)
    assert is_idle(box)


def test_an_empty_message_is_not_sent(box, chat):
    type_and_send(box, " \n ")
    assert "Write a message" in status(box)
    assert not chat.messages


def test_clear_forgets_the_conversation(box, chat):
    box.ask(QUESTION)
    box.controls.clear.click()
    assert not chat.messages
    assert bubbles(box) == (0, 0)
    assert "forgotten" in status(box)


def test_a_saved_conversation_is_restored(box, chat, tmp_path):
    reply = box.ask(QUESTION)
    box.controls.path.value = str(tmp_path / "talk.json")
    box.controls.save.click()
    assert str(tmp_path / "talk.json") in status(box)
    box.controls.clear.click()
    box.controls.restore.click()
    assert bubbles(box) == (1, 1)
    assert reply in log(box)
    assert len(chat.messages) == 2


def test_a_missing_file_is_named_in_the_box(box, tmp_path):
    box.controls.path.value = str(tmp_path / "none.json")
    box.controls.restore.click()
    assert "none.json" in status(box)
    assert is_idle(box)


def test_a_new_box_shows_earlier_messages(chat, box):
    box.ask(QUESTION)
    later = ChatWidget(chat)
    assert log(later) == log(box)
    later.close()


def test_turns_that_the_model_forgot_stay_visible():
    tokenizer = byte_level_tokenizer()
    chat = Chat(tiny_model(tokenizer, positions=96), tokenizer, max_new_tokens=12, seed=0)
    box = ChatWidget(chat)
    for number in range(6):
        box.ask(f"Message number {number}, of some length")
        if chat.last.dropped_turns:
            break
    assert chat.last.dropped_turns
    assert bubbles(box) == (number + 1, number + 1)
    assert "has forgotten" in log(box)
    assert "were forgotten" in status(box)
    box.close()


# Rates of painting


def test_the_log_is_painted_twice_a_turn(box):
    values = []
    box.controls.log.observe(lambda change: values.append(change["new"]), "value")
    box.ask(QUESTION)
    assert len(values) == 2


def test_text_is_painted_by_the_clock_and_not_by_the_token():
    now, painted = [0.0], []
    throttle = Throttle(15, painted.append, lambda: now[0])
    for token in range(100):
        now[0] = token / 50  # two seconds of fifty tokens each
        throttle.tick(str(token))
    assert 20 <= len(painted) <= 31
    assert painted[0] == "0"


def test_a_growing_reply_is_shown_before_it_has_ended(box, model):
    with paused(model) as pause:
        begin_reply(box, pause, pieces=2)
        assert Page(box.controls.live.value).count("mixoff-growing") == 1
        assert Page(box.controls.live.value).text
        assert box.controls.live.layout.display != "none"
    box.wait()
    assert Page(box.controls.live.value).text == ""
    assert box.controls.live.layout.display == "none"


# Settings


def test_sliders_start_at_the_chats_settings_and_change_them(box, chat):
    sliders = box.controls.sampling
    assert {name: slider.value for name, slider in sliders.items()} == vars(chat.sampling)
    sliders["temperature"].value, sliders["max_new_tokens"].value = 0.5, 3
    assert (chat.sampling.temperature, chat.sampling.max_new_tokens) == (0.5, 3)
    box.ask(QUESTION)
    assert chat.last.new_tokens <= 3


def test_a_setting_beyond_a_sliders_end_is_kept(model, tokenizer):
    chat = Chat(model, tokenizer, temperature=3.5, max_new_tokens=5000)
    box = ChatWidget(chat)
    assert (chat.sampling.temperature, chat.sampling.max_new_tokens) == (3.5, 5000)
    box.close()


def test_the_system_prompt_is_set_and_removed(box, chat):
    box.controls.system.value = "Answer in one word."
    assert chat.system == "Answer in one word."
    box.controls.system.value = "  "
    assert chat.system is None


def test_an_idle_cache_is_resized_at_once(box, chat):
    box.controls.slots.value = 7
    assert chat.cache.slots_per_layer == 7
    box.controls.prefetch.value = 3
    assert prefetcher_of(chat.model).experts == 3


def test_a_cache_is_resized_between_two_tokens_of_a_reply(box, chat, model):
    with paused(model) as pause:
        begin_reply(box, pause, pieces=2)
        box.controls.slots.value, box.controls.prefetch.value = 2, 1
        assert chat.cache.slots_per_layer == 4
        pause.step()
        assert chat.cache.slots_per_layer == 2
        assert prefetcher_of(model).experts == 1
    box.wait()


def test_a_slider_moved_after_the_last_token_takes_effect(box, chat, model):
    box.controls.sampling["max_new_tokens"].value = 1
    with paused(model) as pause:
        type_and_send(box)
        until(lambda: pause.reached)
        box.controls.slots.value = 6
        pause.resume()
        box.wait()
    assert chat.cache.slots_per_layer == 6


def test_the_reply_is_the_same_however_the_cache_is_resized(box, chat, model):
    expected = box.ask(QUESTION)
    box.controls.clear.click()
    with paused(model) as pause:
        begin_reply(box, pause, pieces=2)
        box.controls.slots.value = 1
        pause.step(2)
        box.controls.slots.value = 8
    box.wait()
    assert chat.messages[-1]["content"].strip() == expected


def test_a_model_without_a_cache_has_no_gauges():
    tokenizer = byte_level_tokenizer()
    box = ChatWidget(Chat(tiny_model(tokenizer), tokenizer, max_new_tokens=4))
    widgets = set(map(id, descendants(box.controls.view)))
    assert not widgets & {
        *map(id, (box.controls.slots, box.controls.prefetch, box.controls.gauges))
    }
    assert box.ask("Hello")
    assert "tokens" in status(box)
    box.close()


def descendants(widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from descendants(child)


def test_every_control_has_a_name_and_a_tooltip(box):
    kinds = (ipywidgets.Button, ipywidgets.Textarea, ipywidgets.Text, ipywidgets.IntSlider)
    controls = [w for w in descendants(box.controls.view) if isinstance(w, kinds)]
    name = "tooltip" if ipywidgets.__version__ >= "8" else "description_tooltip"
    for control in controls:
        assert control.description
        assert getattr(control, "tooltip" if isinstance(control, ipywidgets.Button) else name)
    assert {"Send", "Stop", "Regenerate", "Clear"} <= {control.description for control in controls}
    assert box.controls.message.placeholder == "Message"


# Gauges


def test_gauges_show_the_caches_counts(box, chat):
    before = chat.cache.stats()
    box.ask(QUESTION)
    first = chat.cache.stats() - before
    assert f"{first.hits:,}, {first.misses:,}" in Page(box.controls.gauges.value).text
    box.ask("And the sea?")
    text, both = Page(box.controls.gauges.value).text, chat.cache.stats() - before
    second = both - first
    assert f"{second.hits:,}, {second.misses:,}{both.hits:,}, {both.misses:,}" in text
    assert f"layer 7: {both.hits_per_layer[7]} hits" in box.controls.gauges.value


def test_gauges_of_a_cleared_conversation_start_at_zero(box):
    box.ask(QUESTION)
    box.controls.clear.click()
    assert "0, 00, 0" in Page(box.controls.gauges.value).text


# Errors and interrupts


def test_a_hostile_error_message_stays_text(box, model):
    with paused(model) as pause:
        pause.error = RuntimeError("<script>alert(1)</script>")
        pause.resume()
        type_and_send(box)
        box.wait()
    assert "RuntimeError: <script>alert(1)</script>" in status(box)


def test_an_error_is_one_sentence_and_the_box_stays_usable(box, chat, model):
    with paused(model) as pause:
        pause.error = RuntimeError("out of\nmemory")
        pause.resume()
        type_and_send(box)
        box.wait()
    assert status(box) == "RuntimeError: out of memory"
    assert is_idle(box)
    assert box.controls.message.value == QUESTION, "the message can be sent again"
    assert not chat.messages
    assert box.ask(QUESTION)


def test_the_part_of_a_reply_before_an_error_is_kept(box, chat, model):
    with paused(model) as pause:
        begin_reply(box, pause, pieces=3)
        pause.error = RuntimeError("gone")
    box.wait()
    assert bubbles(box) == (1, 1)
    assert chat.messages[-1]["content"].strip() in log(box)
    assert "gone" in status(box)


def test_an_interrupt_in_the_model_leaves_the_box_usable(box, model):
    with paused(model) as pause:
        pause.error = KeyboardInterrupt()
        pause.resume()
        type_and_send(box)
        box.wait()
    assert "interrupted" in status(box)
    assert is_idle(box)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Install Python's handler: a process started in a shell's background ignores interrupts."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_a_cell_waits_stops_the_reply(box, chat, model):
    with paused(model) as pause:

        def interrupt() -> None:
            until(lambda: pause.reached)
            pause.step(2)
            _thread.interrupt_main()
            until(lambda: chat._stopping.is_set())
            pause.resume()

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            box.ask(QUESTION)
    assert chat.last.finish == "stopped"
    assert is_idle(box)


def test_a_failed_reply_raises_what_the_box_shows(box, model):
    with paused(model) as pause:
        pause.error = RuntimeError("no luck")
        pause.resume()
        with pytest.raises(MixoffError, match="no luck"):
            box.ask(QUESTION)
    assert "no luck" in status(box)


# Replies and boxes at the same time


def test_a_second_click_during_a_reply_is_answered_by_a_sentence(box, chat, model):
    with paused(model) as pause:
        begin_reply(box, pause)
        type_and_send(box, "Me, too")  # as another tab's view of the same box would
        assert "A reply is running" in status(box)
        assert box.controls.message.value == "Me, too", "the typed message isn't lost"
        with pytest.raises(MixoffError, match="A reply is running"):
            box.ask("Me, too")
    box.wait()
    assert len(chat.messages) == 2
    assert is_idle(box)


def test_two_boxes_on_a_chat_reply_one_at_a_time(box, chat, model):
    second = ChatWidget(chat)
    with paused(model) as pause:
        begin_reply(box, pause)
        type_and_send(second, "Me, too")
        assert "A reply is running" in status(second)
        for button in (second.controls.regenerate, second.controls.clear, second.controls.save):
            button.click()
            assert "A reply is running" in status(second)
    box.wait()
    assert is_idle(box)
    assert is_idle(second)
    second.controls.send.click()
    second.wait()
    assert bubbles(second) == (2, 2)
    assert len(chat.messages) == 4
    second.close()


def test_another_boxes_slider_is_refused_during_a_reply(box, chat, model):
    second = ChatWidget(chat)
    with paused(model) as pause:
        begin_reply(box, pause)
        second.controls.slots.value = 1
        second.controls.system.value = "Be brief."
        assert "A reply is running" in status(second)
        assert second.controls.slots.value == 4
        assert second.controls.system.value == ""
    box.wait()
    assert chat.cache.slots_per_layer == 4
    second.controls.slots.value = 1
    assert chat.cache.slots_per_layer == 1
    second.close()


def test_a_box_shows_settings_of_another_box_with_its_next_reply(box, chat):
    second = ChatWidget(chat)
    second.controls.slots.value = 2
    box.controls.prefetch.value = 1
    box.ask(QUESTION)
    assert chat.cache.slots_per_layer == 2
    assert box.controls.slots.value == 2
    second.close()


def test_many_clicks_from_many_threads_leave_one_conversation(box, chat):
    def press(button) -> None:
        for _ in range(5):
            button.click()

    controls = box.controls
    box.ask(QUESTION)
    buttons = (controls.regenerate, controls.clear, controls.stop, controls.regenerate)
    threads = [threading.Thread(target=press, args=[button]) for button in buttons]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.wait()
    assert is_idle(box)
    users, replies = bubbles(box)
    assert users == replies == len(chat.messages) // 2


# Closing


def fresh_chat(tokenizer):
    model, _ = build_model(demo_path(), OffloadConfig(offload_per_layer=4))
    return Chat(model, tokenizer, temperature=0, max_new_tokens=8)


def test_a_closed_chat_is_named_in_a_sentence(tokenizer):
    chat = fresh_chat(tokenizer)
    box = ChatWidget(chat)
    box.ask(QUESTION)
    chat.close()
    for action in (
        lambda: type_and_send(box),
        box.controls.regenerate.click,
        box.controls.clear.click,
        lambda: setattr(box.controls.slots, "value", 2),
    ):
        box.controls.status.value = ""
        action()
        assert status(box) == "The model was loaded again: run this cell again."
    assert bubbles(box) == (1, 1)
    assert is_idle(box)
    with pytest.raises(MixoffError, match="run this cell again"):
        ChatWidget(chat)
    box.close()


def test_a_chat_closed_while_it_replies_ends_the_reply(tokenizer):
    chat = fresh_chat(tokenizer)
    box = ChatWidget(chat)
    with paused(chat.model) as pause:
        begin_reply(box, pause, pieces=2)
        closing = threading.Thread(target=chat.close)
        closing.start()
        until(lambda: chat._stopping.is_set())
        pause.resume()
        closing.join()
        box.wait()
    until(lambda: is_idle(box))
    assert bubbles(box) == (1, 1)
    box.close()


def test_a_box_keeps_no_model_alive(tokenizer):
    chat = fresh_chat(tokenizer)
    box = ChatWidget(chat)
    box.ask(QUESTION)
    box.controls.slots.value = 2
    with paused(chat.model) as pause:
        pause.error = RuntimeError("an error whose traceback holds the model")
        pause.resume()
        type_and_send(box)
        box.wait()
    kept = [weakref.ref(chat.model), weakref.ref(chat.cache)]
    chat.close()
    del pause
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
    assert QUESTION in log(box)
    box.close()


def registry() -> dict[str, ipywidgets.Widget]:
    """Return ipywidgets' registry of widgets, whose name depends on the version."""
    module = ipywidgets.widgets.widget
    return module._instances if hasattr(module, "_instances") else ipywidgets.Widget.widgets


def test_a_closed_box_leaves_no_widgets_behind(chat):
    before = set(registry())
    box = ChatWidget(chat)
    assert set(registry()) > before
    box.close()
    box.close()
    assert set(registry()) == before
    with pytest.raises(MixoffError, match="was closed"):
        box.ask(QUESTION)
    assert "was closed" in repr(box)


def test_closing_a_box_ends_its_reply(chat, model):
    box = ChatWidget(chat)
    with paused(model) as pause:
        begin_reply(box, pause)
        pause.resume()
        box.close()
    assert not chat.is_replying


# Outside a notebook


def test_outside_a_notebook_a_box_is_shown_as_a_sentence(box):
    assert "mixoff.widget.repl(chat)" in repr(box)
    assert box._repr_mimebundle_() == {"text/plain": repr(box)}


def test_a_box_runs_in_notebooks_only(box):
    with pytest.raises(MixoffError, match="no notebook"):
        box.run()
    assert box.controls.close.layout.display == "none"


def test_a_text_chat_answers_until_an_empty_line(chat, monkeypatch, capsys):
    typed = iter([QUESTION, "", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    repl(chat)
    assert len(chat.messages) == 2
    assert chat.messages[-1]["content"] in capsys.readouterr().out


def test_an_interrupt_in_a_text_chat_ends_the_reply_and_not_the_chat(
    chat, model, monkeypatch, capsys
):
    typed = iter([QUESTION, QUESTION, ""])
    with paused(model) as pause:
        pause.error = KeyboardInterrupt()
        pause.resume()

        def read(prompt: str) -> str:
            if len(chat.messages):
                pause.error = None
            return next(typed)

        monkeypatch.setattr("builtins.input", read)
        repl(chat)
    assert len(chat.messages) == 4
    assert chat.messages[-1]["content"] in capsys.readouterr().out


def test_a_text_chat_prints_errors(tokenizer, monkeypatch, capsys):
    chat = fresh_chat(tokenizer)
    chat.close()
    typed = iter([QUESTION, ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    repl(chat)
    assert "closed" in capsys.readouterr().out


def test_the_chat_box_is_a_public_name_of_the_package():
    import mixoff

    assert mixoff.ChatWidget is ChatWidget
    assert Path(mixoff.widget.__file__).parent.name == "widget"
