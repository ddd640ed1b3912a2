"""How to answer: the model, the system prompt and the sampling parameters, as the sidebar has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_EXTRAS = frozenset({"top_k", "min_p", "repetition_penalty"})
"""Not of the OpenAI API; vLLM's names, which the gateway knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """None leaves a setting to the model's own default: it is not sent."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the openai package's `create`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        extras = {name: given.pop(name) for name in _EXTRAS & given.keys()}
        return given | ({"extra_body": extras} if extras else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str | None = None
    """None as long as the gateway has not told which there are: then its first one."""
    system: str = ""
    sampling: Sampling = Sampling()
