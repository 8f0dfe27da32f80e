"""notebooks/2-chat.ipynb in JupyterLab, seen and clicked as by a person, with each kernel."""

import json

import nbformat
import nbformat.v4 as v4
import pytest

from support.browser.chat_box import ChatBox
from support.browser.kernels import ROOT
from support.browser.tab import RUN_MS

SOURCE = ROOT / "notebooks" / "2-chat.ipynb"
STORY = "Tell me a story about a fox."
WITHOUT_END = """globals().update(hook=chat.model.lm_head.register_forward_hook(
    lambda module, inputs, logits: logits.index_fill(
        -1, __import__("torch").tensor([chat.tokenizer.eos_token_id]), float("-inf"))))"""
SLOW = """globals().update(pause=chat.model.lm_head.register_forward_pre_hook(
    lambda module, inputs: __import__("time").sleep(0.02)))"""
IN_COLAB = """import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
sys.modules["google.colab"] = module_from_spec(ModuleSpec("google.colab", None))"""
LIMIT_S = 10  # generous: the figures are printed, and a busy machine proves nothing of them


def cells():
    return nbformat.read(SOURCE, as_version=4)


@pytest.fixture(scope="session")
def notebook(open_notebook):
    content = cells()
    content.cells.append(v4.new_code_cell("free = 6 * 7\nprint(free)", id="free"))
    opened = open_notebook(content, "chat.ipynb")
    opened.run_all()
    assert opened.errors() == []
    return opened


@pytest.fixture
def box(notebook):
    """Return the notebook's box with an empty conversation."""
    chat_box = ChatBox(notebook)
    if chat_box.button("Stop").is_enabled():
        chat_box.click("Stop")
    chat_box.wait_until_ready()
    chat_box.click("Clear")
    notebook.wait_until("not [m for m in chat.messages if m['role'] != 'system']")
    return chat_box


@pytest.fixture
def endless(notebook):
    """Make replies 200 tokens long: the model may choose any token but the end of sequence."""
    notebook.evaluate(WITHOUT_END)
    notebook.evaluate("setattr(chat, 'sampling', mixoff.chat.Sampling(max_new_tokens=200))")
    yield
    notebook.evaluate("hook.remove()")


@pytest.fixture
def slow(notebook, endless):
    """Make replies take four seconds, so that a test can act meanwhile."""
    notebook.evaluate(SLOW)
    yield
    notebook.evaluate("pause.remove()")


def test_a_reply_of_200_tokens_repaints_the_history_at_most_twice(box, endless, report, kernel):
    box.answer("Who are you?")
    box.watch()
    box.answer(STORY)
    seen = box.seen()
    assert box.notebook.evaluate("chat.last.new_tokens") == 200
    assert len(seen.log) <= 2
    assert len(seen.live) > 2 * len(seen.log)
    assert 0 < seen.first_text_s < LIMIT_S
    rate = box.notebook.evaluate("chat.last.tokens_per_second")
    report(f"{kernel}: first text {seen.first_text_s:.2f} s after Send; {rate:.0f} tokens/s,")
    report(f"{kernel}: {len(seen.live)} writes of the reply, {len(seen.log)} of the history")


def test_stop_ends_the_reply_and_keeps_its_text(box, slow, report, kernel):
    box.watch()
    box.send(STORY)
    box.wait_for_text()
    box.click("Stop")
    box.wait_until_ready()
    assert box.status().startswith("Stopped")
    assert box.notebook.evaluate("chat.last.new_tokens") < 200
    assert box.replies().count() == 1
    assert 0 < box.seen().stopped_s < LIMIT_S
    report(f"{kernel}: {box.seen().stopped_s:.2f} s from Stop to the end of the reply")


def test_a_second_turn_stands_below_the_first(box):
    box.answer("What is the capital of France?")
    box.answer("And of Italy?")
    assert box.users().all_inner_texts() == ["What is the capital of France?", "And of Italy?"]
    assert box.replies().count() == 2
    assert "Paris" in box.replies().first.inner_text()
    assert box.notebook.evaluate("[m['role'] for m in chat.messages]") == ["user", "assistant"] * 2


def test_regenerate_replaces_the_last_reply_only(box):
    box.answer("Who are you?")
    box.answer(STORY)
    before = box.notebook.evaluate("chat.messages")
    box.watch()
    box.click("Regenerate")
    box.notebook.wait_until("len(chat.messages) == 4 and not chat.is_replying")
    box.wait_until_ready()
    after = box.notebook.evaluate("chat.messages")
    assert after[:3] == before[:3]
    assert after[3]["content"]
    assert box.replies().count() == 2
    assert box.seen().live


def test_the_slider_resizes_the_live_cache_and_reloads_nothing(box):
    box.notebook.evaluate("globals().update(loaded=id(chat.model), cached=id(chat.cache))")
    for slots in (2, 6):
        box.set_slider("Slots per layer", slots)
        box.notebook.wait_until(f"chat.cache.slots_per_layer == {slots}")
    assert (
        box.notebook.evaluate("[loaded == id(chat.model), cached == id(chat.cache)]") == [True] * 2
    )
    box.answer("Who are you?")


def test_the_slider_resizes_the_cache_during_a_reply(box, slow):
    box.set_slider("Slots per layer", 6)
    box.send(STORY)
    box.wait_for_text()
    box.set_slider("Slots per layer", 3)
    box.notebook.wait_until("chat.cache.slots_per_layer == 3 or not chat.is_replying")
    assert box.notebook.evaluate("[chat.cache.slots_per_layer, chat.is_replying]") == [3, True]
    box.wait_until_ready()
    assert box.notebook.evaluate("chat.last.new_tokens") == 200


def test_the_kernel_is_free_for_other_cells_while_a_reply_streams(box, slow):
    box.send(STORY)
    box.wait_for_text()
    box.notebook.wait_until_idle()
    box.notebook.evaluate("globals().update(free=None)")
    box.notebook.run_cell("free = 6 * 7")
    assert box.notebook.evaluate("[free, chat.is_replying]") == [42, True]
    assert box.notebook.output_of("free = 6 * 7") == "42\n"
    assert box.notebook.status() == "idle"
    box.click("Stop")


def test_markup_in_messages_and_replies_stays_text(box, tmp_path):
    bad = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    box.answer(bad)
    saved = tmp_path / "conversation.json"
    box.notebook.evaluate(f"chat.save({str(saved)!r})")
    text = saved.read_text(encoding="utf-8")
    reply = json.dumps(box.notebook.evaluate("chat.messages[1]['content']"))[1:-1]
    assert reply in text
    saved.write_text(text.replace(reply, bad), encoding="utf-8")
    box.whole.get_by_label("File").fill(str(saved))
    box.click("Restore")
    box.notebook.wait_until(f"chat.messages[1]['content'] == {bad!r}")
    box.replies().filter(has_text=bad).wait_for()
    assert box.users().inner_text() == bad
    assert box.whole.locator(".mixoff-log").locator("script, img").count() == 0
    assert box.notebook.dialogs == []


def test_two_tabs_on_one_kernel_show_one_conversation(box, open_tab):
    first = box
    first.notebook.save()
    second = ChatBox(open_tab("chat.ipynb"))
    second.answer("What is the capital of France?")
    first.answer("And of Italy?")
    for view in (first, second):
        view.replies().nth(1).wait_for()
    assert first.conversation() == second.conversation()
    assert (
        first.notebook.evaluate("[m['role'] for m in chat.messages]") == ["user", "assistant"] * 2
    )


def test_a_click_in_another_tab_during_a_reply_begins_no_second_reply(box, slow, open_tab):
    box.notebook.save()
    second = ChatBox(open_tab("chat.ipynb"))
    box.send(STORY)
    second.wait_for_text()
    assert not second.button("Send").is_enabled()
    second.click("Stop")
    box.wait_until_ready()
    assert box.status().startswith("Stopped")
    assert box.notebook.evaluate("[m['role'] for m in chat.messages]") == ["user", "assistant"]


def test_loading_again_frees_the_first_model(box):
    notebook = box.notebook
    box.answer("Who are you?")
    notebook.evaluate("globals().update(first=__import__('weakref').ref(chat.model))")
    notebook.run_cell("mixoff.load_chat(")
    notebook.wait_until("(__import__('gc').collect(), first() is None)[1]")
    box.send("Are you there?")
    notebook.page.wait_for_function(
        "() => document.querySelector('.mixoff-status').textContent.includes('again')"
    )
    notebook.run_cell("box = mixoff.ChatWidget(")
    assert notebook.errors() == []
    ChatBox(notebook).answer("Who are you?")


# Only Colab keeps a cell busy; newer kernels handle no clicks while a cell is busy.
@pytest.mark.parametrize("kernel", ["colab"], indirect=True)
def test_in_colab_the_cell_streams_stops_and_ends_by_close(open_notebook, kernel, report):
    content = cells()
    content.cells.insert(1, v4.new_code_cell(IN_COLAB, id="in-colab"))
    notebook = open_notebook(content, "colab.ipynb")
    notebook.start_all()
    box = ChatBox(notebook, view=-1)
    box.button("Close").wait_for(timeout=RUN_MS)
    assert notebook.is_running()
    box.watch()
    box.send(STORY)
    box.wait_for_text()
    box.click("Stop")
    box.wait_until_ready()
    assert box.status().startswith("Stopped")
    report(f"colab, busy cell: first text {box.seen().first_text_s:.2f} s after Send,")
    report(f"colab, busy cell: {box.seen().stopped_s:.2f} s from Stop to the end of the reply")
    box.answer("Who are you?")
    assert notebook.is_running()
    box.click("Close")
    notebook.wait_until_ran()
    assert notebook.errors() == []
    assert notebook.evaluate("len(chat.messages)") == 6
