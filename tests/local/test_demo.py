from __future__ import annotations

from local.demo import figures
from triton_chat import ChatResult


def test_figures_of_an_answer() -> None:
    answer = ChatResult("x", "stop", 8, 57, 0, ttft_s=0.04, duration_s=0.5, tokens_per_s=121.4)
    assert figures(answer) == "first token after 40 ms, 57 tokens, 121 tokens/s"


def test_an_answer_that_came_at_once_has_no_rate() -> None:
    assert figures(ChatResult("x", "stop", 8, 57, 0, ttft_s=0.04)) == "first token after 40 ms, 57 tokens"
