"""Questions to begin with, for an empty conversation. models/tiny-chat knows all of them, and so should any model."""

from __future__ import annotations

ENGLISH = (
    "What is continuous batching?",
    "Write a Python hello world.",
    "Which sampling parameters are supported?",
)
CHINESE = (
    "什么是连续批处理？",
    "用 Python 写一个 hello world。",
    "支持哪些采样参数？",
)


def examples(locale: str | None) -> tuple[str, ...]:
    """Three in the browser's language and one in the other, which says that both work."""
    own, other = (CHINESE, ENGLISH) if (locale or "").lower().startswith("zh") else (ENGLISH, CHINESE)
    return (*own, other[0])
