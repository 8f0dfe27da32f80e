"""The chat box in a real kernel: its display data, and clicks handled while a reply streams."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from queue import Empty
from time import monotonic
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

LIMIT_S = 60.0
DEFERS_CLICKS = int(version("ipykernel").split(".")[0]) >= 7
can_run = pytest.mark.skipif(
    DEFERS_CLICKS or find_spec("jupyter_ui_poll") is None,
    reason="needs ipykernel 6, as Colab has it, and jupyter_ui_poll",
)
LOAD = """
import mixoff
offload = mixoff.OffloadConfig(offload_per_layer=4)
chat = mixoff.load_chat(mixoff.demo_path(), offload, temperature=0, max_new_tokens=8)
box = mixoff.ChatWidget(chat)
print()  # ends the line of a progress bar
print(*(w.model_id for w in (box.controls.send, box.controls.close, box.controls.log)))
"""
COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
"""


class Kernel:
    """A kernel as a front end sees it: cells, clicks, and published messages."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client
        self.send, self.close, self.log = self.run(LOAD).split()[-3:]

    def run(self, code: str) -> str:
        """Run a cell to its end, and return the text that it printed and displayed."""
        cell, texts = self.client.execute(code), []

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            texts.append(content.get("text", content.get("data", {}).get("text/plain", "")))
            assert message["msg_type"] != "error", "\n".join(content["traceback"])

        self.until(lambda m: is_idle(m, cell), note)
        return "".join(text for text in texts if isinstance(text, str))

    def click(self, model_id: str) -> str:
        """Click a button as a browser does, and return the message's id."""
        content = {
            "comm_id": model_id,
            "data": {"method": "custom", "content": {"event": "click"}, "buffers": []},
        }
        message = self.client.session.msg("comm_msg", content)
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def until(
        self,
        is_wanted: Callable[[dict[str, Any]], bool],
        note: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> None:
        """Read the kernel's messages up to the wanted one."""
        end = monotonic() + LIMIT_S
        while monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
                note(message)
            if is_wanted(message):
                return
        raise AssertionError("the message never arrived")

    def until_log(self, text: str) -> None:
        """Read messages until the box's log has the text in it."""

        def shows(message: dict[str, Any]) -> bool:
            if message["msg_type"] != "comm_msg" or message["content"]["comm_id"] != self.log:
                return False
            return text in message["content"]["data"].get("state", {}).get("value", "")

        self.until(shows)


def is_idle(message: dict[str, Any], parent: str) -> bool:
    return (
        message["msg_type"] == "status"
        and message["content"]["execution_state"] == "idle"
        and message["parent_header"].get("msg_id") == parent
    )


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    manager, client = start_new_kernel(startup_timeout=LIMIT_S)
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_notebook_displays_a_widget_and_other_front_ends_a_sentence(kernel):
    output = kernel.run("bundle = box._repr_mimebundle_(); print(*bundle); box")
    assert "application/vnd.jupyter.widget-view+json" in output
    assert "mixoff.widget.repl(chat)" in output


def test_the_kernel_is_idle_before_the_reply_has_ended(kernel):
    kernel.run("box.controls.message.value = 'Why is the sky blue?'")
    click = kernel.click(kernel.send)
    kernel.until(lambda m: is_idle(m, click))
    kernel.until_log("mixoff-reply")
    assert kernel.run("box.wait(); print(chat.is_replying)").strip() == "False"


def test_a_cell_that_sends_a_message_ends_with_the_reply(kernel):
    assert kernel.run("print(box.ask('Why is the sky blue?'))").strip()


def test_in_colab_the_box_says_to_run_it(kernel):
    kernel.run(COLAB)
    kernel.run("box")
    assert "box.run()" in kernel.run("print(box.controls.status.value)")


@can_run
def test_a_running_box_handles_clicks_in_its_cell_until_close(kernel):
    kernel.run(COLAB + "box.controls.clear.click()\nbox.controls.message.value = 'Hello'")
    cell = kernel.client.execute("box.run()")
    kernel.until(lambda m: m["msg_type"] == "display_data")
    kernel.click(kernel.send)
    kernel.until_log("mixoff-reply")
    kernel.click(kernel.close)
    kernel.until(lambda m: is_idle(m, cell))
    assert kernel.run("print(len(chat.messages), chat.is_replying)").split() == ["2", "False"]
    assert "no longer answers" in kernel.run("print(box.controls.status.value)")


@can_run
def test_an_interrupt_ends_a_running_box(kernel):
    cell = kernel.client.execute("box.run()")
    kernel.until(lambda m: m["msg_type"] == "display_data")
    kernel.manager.interrupt_kernel()
    kernel.until(lambda m: is_idle(m, cell))
    assert kernel.run("print(box.controls.close.layout.display)").strip() == "none"


def test_a_box_that_cannot_run_says_why(kernel):
    kernel.run("import sys; sys.modules['jupyter_ui_poll'] = None")
    code = "try:\n    box.run()\nexcept mixoff.MixoffError as error:\n    print(error)"
    reason = (
        "handles no clicks while a cell runs" if DEFERS_CLICKS else "pip install jupyter_ui_poll"
    )
    assert reason in kernel.run(code)
    assert kernel.run("print(box.controls.close.layout.display)").strip() == "none"
