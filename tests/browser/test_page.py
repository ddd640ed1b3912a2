"""The page over the whole stack: a real tritonserver with models/tiny-chat, the gateway, Chromium."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect

from local.options import ROOT, GatewayOptions, PageOptions, StackOptions, TritonOptions
from local.stack import LocalStack
from tests.browser.conftest import Visit
from tests.browser.visitor import LAPTOP, PATIENCE_MS, PHONE, Visitor
from tests.integration.calls import Metrics, eventually

IMAGES = ROOT / "docs" / "images"
FIGURES = re.compile(r"(\d+\.\d tokens/s · )?first token [\d.]+ m?s · \d+ tokens · chat")
"""A page that a busy machine let read only once everything was there tells no pace."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    logs = tmp_path_factory.mktemp("stack")
    options = StackOptions(
        triton=TritonOptions(
            http_port=0, grpc_port=0, metrics_port=0, log_path=logs / "tritonserver.log", exit_timeout_s=10
        ),
        gateway=GatewayOptions(port=0, log_path=logs / "gateway.log", exit_timeout_s=5),
        page=PageOptions(port=0, log_path=logs / "page.log"),
    )
    with LocalStack(options) as started:
        yield started


def ask_and_wait(visitor: Visitor, number: int, question: str) -> None:
    """Asks the `number`-th question from 0; returns when its answer is complete."""
    visitor.ask(question)
    expect(visitor.answer(number)).to_contain_text(FIGURES, timeout=PATIENCE_MS)


def test_an_answer_streams_in_and_a_second_turn_follows(stack: LocalStack, visit: Visit) -> None:
    visitor = visit(stack.page.url)
    expect(visitor.key("model").locator("input")).to_have_value("chat")
    visitor.watch_growth()
    ask_and_wait(visitor, 0, "Give me a long answer.")
    expect(visitor.answer(0)).to_contain_text("At the end its cache blocks are freed")
    growth = visitor.growth()
    assert len(growth) >= 3, "it came in one piece"
    assert growth[0] < growth[-1] / 2
    ask_and_wait(visitor, 1, "What is a KV cache?")
    expect(visitor.question(0)).to_be_visible()


def test_an_example_in_chinese_is_answered_in_chinese(stack: LocalStack, visit: Visit) -> None:
    visitor = visit(stack.page.url, locale="zh-CN")
    visitor.button("example-0").click()
    expect(visitor.answer(0)).to_contain_text("连续批处理", timeout=PATIENCE_MS)
    expect(visitor.answer(0)).to_contain_text(FIGURES)


def test_stop_ends_the_work_in_the_engine(stack: LocalStack, visit: Visit) -> None:
    visitor = visit(stack.page.url)
    visitor.set("temperature", "2")  # tiny-chat talks nonsense then,
    visitor.key("more-sampling").locator("summary").click()
    visitor.set("frequency-penalty", "-2")  # and with this it repeats it, and seldom finds an end
    visitor.set("max-tokens", "900")
    assert any(stopped(stack, visitor) for _ in range(8)), "no stop reached the engine"


def stopped(stack: LocalStack, visitor: Visitor) -> bool:
    """Stops an answer; False where the engine had ended it before it heard of that."""
    visitor.button("new-chat").click()
    expect(visitor.answer(0)).to_have_count(0)
    before = Metrics(stack.triton)
    visitor.ask("Tell me a story.")
    ended = visitor.answer(0).get_by_text("first token")
    expect(visitor.growing_text.or_(ended).first).to_be_visible(timeout=PATIENCE_MS)
    with contextlib.suppress(PlaywrightTimeout):
        visitor.button("stop").click(timeout=2000)
    expect(ended).to_be_visible(timeout=PATIENCE_MS)
    expect(visitor.button("stop")).to_have_count(0)
    eventually(lambda: grown(stack, before, "triton_chat_requests_total") == 1, within=10)
    if not grown(stack, before, "triton_chat_requests_total", finish_reason="cancelled"):
        return False
    expect(visitor.answer(0)).to_contain_text("stopped")
    return True


def grown(stack: LocalStack, before: Metrics, name: str, **labels: str) -> float:
    return (Metrics(stack.triton) - before)(name, **labels)


def test_a_conversation_that_is_too_long_is_a_sentence_and_no_dead_end(stack: LocalStack, visit: Visit) -> None:
    visitor = visit(stack.page.url)
    visitor.ask("batch " * 3000)
    expect(visitor.problem).to_contain_text("too long for the model", timeout=PATIENCE_MS)
    expect(visitor.problem).to_contain_text("2048")
    visitor.button("new-chat").click()
    ask_and_wait(visitor, 0, "Who are you?")


@pytest.mark.parametrize(
    ("name", "size", "dark"), [("page", LAPTOP, False), ("page-dark", LAPTOP, True), ("page-phone", PHONE, False)]
)
def test_screenshots_for_the_docs(
    stack: LocalStack, visit: Visit, name: str, size: tuple[int, int], dark: bool
) -> None:
    visitor = visit(stack.page.url, size, dark=dark, pixels=2 if size == PHONE else 1)
    ask_and_wait(visitor, 0, "How are you?")
    ask_and_wait(visitor, 1, "Write a Python hello world.")
    expect(visitor.answer(1)).to_contain_text("def greet")
    expect(visitor.button("again")).to_be_in_viewport()
    IMAGES.mkdir(exist_ok=True)
    image: Path = IMAGES / f"{name}.png"
    visitor.page.screenshot(path=image, animations="disabled", caret="hide")
    assert image.stat().st_size > 10_000


def test_a_gateway_that_died_is_a_sentence(stack: LocalStack, visit: Visit) -> None:
    """The last one: after it there is no gateway."""
    visitor = visit(stack.page.url)
    stack.gateway.stop()
    visitor.ask("Is anybody there?")
    expect(visitor.problem).to_contain_text("The gateway cannot be reached", timeout=PATIENCE_MS)
    expect(visitor.question(0)).to_contain_text("Is anybody there?")
    expect(visitor.button("again")).to_contain_text("Try again")
