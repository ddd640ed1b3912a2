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

TOOL = """[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "%s",
      "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"]
      }
    }
  }
]"""


def tool_example(locale: str | None) -> str:
    """A list with one tool, as the API has it; its description is in the browser's language."""
    return TOOL % ("查询一个城市的天气" if _is_chinese(locale) else "The weather of a city")


def examples(locale: str | None) -> tuple[str, ...]:
    """Three in the browser's language and one in the other, which says that both work."""
    own, other = (CHINESE, ENGLISH) if _is_chinese(locale) else (ENGLISH, CHINESE)
    return (*own, other[0])


def _is_chinese(locale: str | None) -> bool:
    return (locale or "").lower().startswith("zh")
