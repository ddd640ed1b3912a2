"""A request inside vLLM: what comes of it, and what its caller is to hear."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from chat_engine.answering.guide import Guide
from chat_engine.answering.telling import Logprobs, Telling
from chat_engine.errors import ChatError
from chat_engine.protocol import Sink
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service.door import Progress
from chat_engine.text.detokenizer import TokenNames
from chat_engine.text.stop_strings import Places


class Running:
    """One request. Outputs of vLLM come in; `tell` hands on what they have added since the last time."""

    def __init__(
        self,
        request: ChatRequest,
        sink: Sink,
        guide: Guide,
        tokenizer: Tokenizer,
        names: TokenNames,
        places: Places | None = None,
    ) -> None:
        self.request = request
        self.guide = guide
        self._telling = Telling(request, sink, guide, tokenizer, names, places)
        self._num_cached = 0
        self._first_scheduled: float | None = None
        self._first_token: float | None = None

    @property
    def progress(self) -> Progress:
        """How far it got."""
        return Progress(self._telling.num_output, self._num_cached, self._first_scheduled, self._first_token)

    def take(self, output: Any) -> FinishReason | None:
        """Takes in a `RequestOutput` with what is new. Gives the reason where the answer ends with it."""
        self._note(output)
        if output.prompt_logprobs:
            self._score(output.prompt_logprobs)
        if not self.request.max_tokens:
            return FinishReason.LENGTH
        completion = output.outputs[0]
        entries = completion.logprobs or [None] * len(completion.token_ids)
        for token_id, entry in zip(completion.token_ids, entries, strict=True):
            count = self.request.sampling.logprobs or 0
            reason = self._telling.append(token_id, _logprobs(entry, token_id, count) if entry else None)
            if reason or self.guide.error:
                return reason
        return None

    def tell(self, reason: FinishReason | None = None, error: ChatError | None = None) -> None:
        """Hands on what is new, and the end with its reason."""
        self._telling.tell(self._num_cached, reason, error)

    def _note(self, output: Any) -> None:
        if self._first_scheduled is None:
            # By the same clock: CLOCK_MONOTONIC is one for all processes.
            self._first_scheduled = (output.metrics and output.metrics.scheduled_ts) or time.monotonic()
        if output.num_cached_tokens is not None:
            self._num_cached = output.num_cached_tokens
        if self._first_token is None and self.request.max_tokens:
            self._first_token = time.monotonic()

    def _score(self, entries: list[Mapping[int, Any] | None]) -> None:
        """Of each token of the prompt but the first, which has none before it."""
        count = self.request.sampling.prompt_logprobs or 0
        for token_id, entry in zip(self.request.prompt_ids, entries, strict=True):
            if entry is not None:
                self._telling.score(token_id, _logprobs(entry, token_id, count))


def _logprobs(entry: Mapping[int, Any], token_id: int, count: int) -> Logprobs:
    """Of a token, from vLLM's form: the chosen one and the most probable ones, by their ids."""
    best = sorted(((other, found.logprob) for other, found in entry.items()), key=lambda pair: -pair[1])
    own = entry[token_id]
    return Logprobs(own.logprob, tuple(best[:count]), own.rank or 0)
