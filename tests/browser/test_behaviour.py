"""The page over the fake gateway, for what only a browser can show and a real model does not do on command."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from local.options import PageOptions
from local.page import LocalPage
from tests.browser.conftest import Visit
from tests.browser.visitor import LAPTOP, PHONE
from tests.ui.fake_gateway import FakeGateway, in_turn, refuse, say, say_and_hold, think_and_call, think_and_say

KEY = "sk-not-for-the-browser"
CLOSED_TAB_S = 30.0
"""The page's own patience with a lost connection, and some."""
WILD = """# Heading <b>not bold</b>

<img src=x onerror=alert(1)><script>alert(1)</script> ![x](http://127.0.0.2/x.png) [link](javascript:alert(1))

| a | b |
|---|---|
| 1 | a cell with so many words in it that it is a good deal wider than the screen of any phone |

```python
a_line_of_code = "that is a good deal wider than the screen of any phone, and not to be broken"
```

averyveryveryveryveryveryveryveryveryveryveryveryveryverylongword
"""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeGateway]:
    gateway = FakeGateway()
    gateway.key = KEY
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def url(fake: FakeGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = PageOptions(
        port=0,
        extra_env={"TRITON_CHAT_UI_API_KEY": KEY},
        log_path=tmp_path_factory.mktemp("page") / "page.log",
    )
    with LocalPage(options, fake.url) as page:
        yield page.url


@pytest.fixture(autouse=True)
def forgetful(fake: FakeGateway) -> None:
    """Each test counts its requests from one and says what is answered."""
    fake.received.clear()
    fake.reply = say("Hello", " world", "!")


def test_stop_hangs_up_and_keeps_what_has_come(fake: FakeGateway, url: str, visit: Visit) -> None:
    fake.reply = say_and_hold("The first half")
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running).to_contain_text("The first half")
    visitor.button("stop").click()
    assert fake.wait_for(1).gone.wait(2)
    expect(visitor.answer(0)).to_contain_text("The first half")
    expect(visitor.answer(0)).to_contain_text("stopped")
    fake.reply = say("And on")
    visitor.ask("two")
    expect(visitor.answer(1)).to_contain_text("And on")


def test_stop_works_before_the_first_token(fake: FakeGateway, url: str, visit: Visit) -> None:
    fake.reply = say_and_hold("")
    visitor = visit(url)
    visitor.ask("one")
    request = fake.wait_for(1)
    expect(visitor.running).to_contain_text("Waiting for the first token")
    visitor.button("stop").click()
    assert request.gone.wait(2)
    expect(visitor.answer(0)).to_contain_text("stopped")


def test_a_closed_tab_hangs_up(fake: FakeGateway, url: str, visit: Visit) -> None:
    fake.reply = say_and_hold("half")
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running).to_contain_text("half")
    visitor.leave()
    assert fake.wait_for(1).gone.wait(CLOSED_TAB_S)


def test_a_new_chat_hangs_up(fake: FakeGateway, url: str, visit: Visit) -> None:
    fake.reply = say_and_hold("half")
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running).to_contain_text("half")
    visitor.button("new-chat").click()
    assert fake.wait_for(1).gone.wait(2)
    expect(visitor.key("welcome")).to_be_visible()
    expect(visitor.running).to_have_count(0)


def test_a_setting_and_a_draft_while_an_answer_grows_disturb_nothing(fake: FakeGateway, url: str, visit: Visit) -> None:
    end = threading.Event()
    fake.reply = say_and_hold("half", end)
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running).to_contain_text("half")
    visitor.set("temperature", "0.5")
    visitor.input.fill("what I want to ask next")
    expect(visitor.running).to_contain_text("half")
    assert not fake.wait_for(1).gone.is_set()
    end.set()
    expect(visitor.answer(0)).to_contain_text("half")
    expect(visitor.input).to_have_value("what I want to ask next")
    fake.reply = say("done")
    visitor.input.press("Enter")
    expect(visitor.answer(1)).to_contain_text("done")
    assert fake.wait_for(2).body["temperature"] == 0.5


def test_a_question_in_the_middle_of_an_answer_stops_it(fake: FakeGateway, url: str, visit: Visit) -> None:
    fake.reply = say_and_hold("half")
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running).to_contain_text("half")
    fake.reply = say("the second")
    visitor.ask("two")
    assert fake.wait_for(1).gone.wait(2)
    expect(visitor.answer(1)).to_contain_text("the second")
    assert [message["content"] for message in fake.wait_for(2).body["messages"]] == ["one", "half", "two"]


def test_enter_that_chooses_a_character_sends_nothing(fake: FakeGateway, url: str, visit: Visit) -> None:
    """What an input method does: the text is composed, Enter takes it over, and only the next Enter is meant."""
    visitor = visit(url)
    visitor.input.focus()
    keyboard = visitor.context.new_cdp_session(visitor.page)
    keyboard.send("Input.imeSetComposition", {"text": "你好", "selectionStart": 2, "selectionEnd": 2})
    keyboard.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "Enter", "windowsVirtualKeyCode": 229})
    keyboard.send("Input.insertText", {"text": "你好"})
    expect(visitor.input).to_have_value("你好")
    assert fake.received == []
    visitor.input.press("Enter")
    assert fake.wait_for(1).question == "你好"
    expect(visitor.answer(0)).to_contain_text("Hello world!")
    assert len(fake.received) == 1


def test_several_lines_are_one_question(fake: FakeGateway, url: str, visit: Visit) -> None:
    visitor = visit(url)
    visitor.input.fill("one")
    visitor.input.press("Shift+Enter")
    visitor.input.press_sequentially("  two")
    visitor.input.press("Enter")
    assert fake.wait_for(1).question == "one\n  two"


def test_an_error_keeps_the_question_which_can_be_sent_again_or_changed(
    fake: FakeGateway, url: str, visit: Visit
) -> None:
    fake.reply = refuse(429, code="overloaded", retry_after=2)
    visitor = visit(url)
    visitor.ask("a question that took time to write")
    expect(visitor.problem).to_contain_text("The server is overloaded")
    expect(visitor.question(0)).to_contain_text("a question that took time to write")
    fake.reply = refuse(503, code="unavailable")
    visitor.button("again").click()
    expect(visitor.problem).to_contain_text("not available right now")
    visitor.button("edit").click()
    expect(visitor.input).to_have_value("a question that took time to write")
    expect(visitor.problem).to_have_count(0)


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_what_a_model_writes_stays_text_and_inside_the_screen(
    fake: FakeGateway, url: str, visit: Visit, size: tuple[int, int], dark: bool
) -> None:
    fake.reply = say(*WILD.splitlines(keepends=True))
    visitor = visit(url, size, dark=dark)
    visitor.ask("<b>bold?</b> " + "very" * 40)
    expect(visitor.answer(0)).to_contain_text(re.compile(r"\d+ tokens · "))
    expect(visitor.question(0)).to_contain_text("<b>bold?</b>")
    expect(visitor.answer(0)).to_contain_text("<img src=x onerror=alert(1)>")
    expect(visitor.answer(0).locator("img, script, b, a[href^='javascript']")).to_have_count(0)
    expect(visitor.answer(0).locator("table, pre code")).to_have_count(2)
    assert visitor.overflow() <= 0


def test_the_theme_is_that_of_the_reader(url: str, visit: Visit) -> None:
    colours = [
        visit(url, dark=dark).page.locator(".stApp").evaluate("page => getComputedStyle(page).backgroundColor")
        for dark in (False, True)
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 25, 26)"]


def test_a_phone_has_the_settings_behind_a_button(fake: FakeGateway, url: str, visit: Visit) -> None:
    visitor = visit(url, PHONE)
    expect(visitor.key("model")).not_to_be_in_viewport()
    visitor.page.get_by_test_id("stExpandSidebarButton").click()
    expect(visitor.key("model")).to_be_in_viewport()
    visitor.set("system", "请简短地回答。")
    visitor.page.get_by_test_id("stSidebarCollapseButton").locator("button").click()
    visitor.button("example-1").click()
    expect(visitor.answer(0)).to_contain_text("Hello world!")
    header, question = visitor.page.get_by_test_id("stHeader").bounding_box(), visitor.question(0).bounding_box()
    assert header is not None
    assert question is not None
    assert question["y"] >= header["y"] + header["height"], "the header hides the question"
    assert fake.wait_for(1).body["messages"][0]["content"] == "请简短地回答。"


def test_the_conversation_can_be_taken_home(url: str, visit: Visit, tmp_path: Path) -> None:
    visitor = visit(url)
    visitor.ask("你好")
    expect(visitor.answer(0)).to_contain_text("Hello world!")
    expect(visitor.button("download-json")).to_be_enabled()
    texts = {}
    for name in ("download-json", "download-markdown"):
        with visitor.page.expect_download() as download:
            visitor.button(name).click()
        download.value.save_as(tmp_path / name)
        texts[download.value.suggested_filename] = (tmp_path / name).read_text(encoding="utf-8")
    messages = json.loads(texts["conversation.json"])["messages"]
    assert [message["content"] for message in messages] == ["你好", "Hello world!"]
    assert "## You\n\n你好" in texts["conversation.md"]


def test_the_key_never_reaches_the_browser(fake: FakeGateway, url: str, visit: Visit) -> None:
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.answer(0)).to_contain_text("Hello world!")
    assert fake.wait_for(1).headers["authorization"] == f"Bearer {KEY}"
    seen = [visitor.page.content(), *visitor.observed.received]
    assert len(seen) > 1
    assert all(KEY not in text if isinstance(text, str) else KEY.encode() not in text for text in seen)


def test_reasoning_is_open_while_it_comes_and_folded_then(fake: FakeGateway, url: str, visit: Visit) -> None:
    end = threading.Event()
    fake.reply = think_and_say("Paris is in **France**.", "法国", end)
    visitor = visit(url)
    visitor.ask("one")
    expect(visitor.running.get_by_text("Paris is in France.")).to_be_visible()
    end.set()
    expect(visitor.answer(0)).to_contain_text("法国")
    thought = visitor.answer(0).get_by_text("Paris is in France.")
    expect(thought).not_to_be_visible()
    heading = visitor.answer(0).locator("summary")
    heading.focus()
    heading.press("Enter")
    expect(thought).to_be_visible()


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_call_is_answered_by_keyboard(fake: FakeGateway, url: str, visit: Visit, size: tuple[int, int]) -> None:
    arguments = json.dumps({"city": "北京 " + "very" * 40})
    fake.reply = in_turn(think_and_call("Hm.", ("1", "get_weather", arguments)), say("18 °C"))
    visitor = visit(url, size)
    visitor.ask("one")
    field = visitor.answer(0).get_by_label("Result of get_weather")
    expect(field).to_be_visible()
    expect(visitor.answer(0).locator("pre code")).to_contain_text('"city": "北京')
    assert visitor.overflow() <= 0
    field.focus()
    field.press_sequentially("18 度")
    field.press("Control+Enter")
    expect(visitor.answer(0)).to_contain_text("18 °C")
    expect(field).to_have_count(0)
    sent = fake.wait_for(2).body["messages"]
    assert sent[-1] == {"role": "tool", "tool_call_id": "1", "content": "18 度"}
    expect(visitor.answer(0).locator("pre code")).to_have_count(2)


def test_tools_can_be_inserted_and_sent(fake: FakeGateway, url: str, visit: Visit) -> None:
    visitor = visit(url, locale="zh-CN")
    visitor.key("tools-and-format").locator("summary").click()
    visitor.button("tools-example").click()
    expect(visitor.key("tools").locator("textarea")).to_have_value(re.compile("天气"))
    visitor.ask("one")
    expect(visitor.answer(0)).to_contain_text("Hello world!")
    assert fake.wait_for(1).body["tools"][0]["function"]["name"] == "get_weather"
