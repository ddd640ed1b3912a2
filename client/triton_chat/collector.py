"""The events of an answer, added up."""

from __future__ import annotations

import time

from triton_chat.pace import Pace
from triton_chat.types import ChatEvent, ChatResult, PromptLogprob, TokenLogprob, ToolCall, ToolCallDelta


class Collector:
    """Adds events up to a `ChatResult`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._ttft_s: float | None = None
        self._pace = Pace()
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[PromptLogprob] = []
        self._token_ids: list[int] = []
        self._prompt_token_ids: tuple[int, ...] = ()
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, list[ToolCallDelta]] = {}
        self._last = ChatEvent("")

    def add(self, event: ChatEvent) -> None:
        now_s = time.perf_counter() - self._started
        if self._ttft_s is None and (event.num_output_tokens or event.text or event.reasoning or event.tool_calls):
            self._ttft_s = now_s
        self._pace.add(now_s, event.num_output_tokens)
        self._texts.append(event.text)
        self._logprobs.extend(event.logprobs)
        self._prompt_logprobs.extend(event.prompt_logprobs)
        self._token_ids.extend(event.token_ids)
        self._prompt_token_ids += event.prompt_token_ids
        self._reasoning.append(event.reasoning)
        for delta in event.tool_calls:
            self._tool_calls.setdefault(delta.index, []).append(delta)
        self._last = event

    def result(self) -> ChatResult:
        """What there is so far; its duration ends now."""
        last = self._last
        return ChatResult(
            text="".join(self._texts),
            finish_reason=last.finish_reason,
            num_input_tokens=last.num_input_tokens,
            num_output_tokens=last.num_output_tokens,
            num_cached_tokens=last.num_cached_tokens,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self._prompt_token_ids,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(_whole(deltas) for _, deltas in sorted(self._tool_calls.items())),
            num_reasoning_tokens=last.num_reasoning_tokens,
            ttft_s=self._ttft_s,
            duration_s=time.perf_counter() - self._started,
            tokens_per_s=self._pace.tokens_per_s,
        )


def _whole(deltas: list[ToolCallDelta]) -> ToolCall:
    first = deltas[0]
    return ToolCall(first.id, first.name, "".join(delta.arguments for delta in deltas))
