from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat_page.examples import CHINESE, ENGLISH, examples

DIALOGUES = Path(__file__).parents[2] / "models" / "tiny-chat" / "dialogues.jsonl"


def test_tiny_chat_was_trained_on_every_example() -> None:
    topics = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    known = {phrasing["text"] for topic in topics for phrasing in topic["phrasings"] if "after" not in topic}
    assert known.issuperset({*ENGLISH, *CHINESE})


@pytest.mark.parametrize(
    ("locale", "first"), [("en-GB", ENGLISH), ("zh-CN", CHINESE), ("ZH", CHINESE), (None, ENGLISH)]
)
def test_the_browsers_language_comes_first_and_both_are_there(locale: str | None, first: tuple[str, ...]) -> None:
    shown = examples(locale)
    assert shown[: len(first)] == first
    assert {*shown} & {*ENGLISH}
    assert {*shown} & {*CHINESE}
