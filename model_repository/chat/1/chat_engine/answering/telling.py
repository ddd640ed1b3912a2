"""What the caller of one request hears of it: text, reasoning, calls and log-probabilities, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer

from chat_engine.answering.guide import Guide
from chat_engine.errors import ChatError
from chat_engine.protocol import Sink
from chat_engine.request import (
    Alternative,
    ChatRequest,
    FinishReason,
    PromptToken,
    TokenEvent,
    TokenLogprobs,
    ToolCallDelta,
)
from chat_engine.text.answer import CallOpening, Said, answer_text
from chat_engine.text.detokenizer import TokenNames
from chat_engine.text.stop_strings import Places


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities of one token: of the chosen one, and of the most probable ones.

    `rank` is the place of the chosen token in the vocabulary, 1 the most probable; 0 where nobody asked.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]
    rank: int = 0


class Telling:
    """Tokens and scores come in; `tell` hands on what they have added since the last time.

    Args:
        request: what is asked for.
        sink: where events go.
        guide: which tokens end the answer, and what it must follow.
        tokenizer: turns ids into text.
        names: of single tokens.
        places: where a stop string may end it; None: anywhere.

    Attributes:
        num_output: tokens of the answer so far.
    """

    def __init__(
        self,
        request: ChatRequest,
        sink: Sink,
        guide: Guide,
        tokenizer: Tokenizer,
        names: TokenNames,
        places: Places | None = None,
    ) -> None:
        params, prompt_ids = request.sampling, request.prompt_ids
        self.num_output = 0
        self._request = request
        self._sink = sink
        self._guide = guide
        self._names = names
        self._answer = answer_text(
            tokenizer,
            request.reply,
            prompt_ids,
            params.stop,
            skip_special_tokens=params.skip_special_tokens,
            echo=bool(request.echo),
            places=places,
        )
        self._opening: CallOpening | None = None
        self._is_called = False
        # What the caller has not heard yet; from the start that is what only the first event has.
        self._text = request.echo
        self._reasoning = ""
        self._calls: list[ToolCallDelta] = []
        self._logprobs: list[TokenLogprobs] = []
        self._token_ids: list[int] = []
        self._prompt_token_ids = prompt_ids if params.return_token_ids else ()
        self._prompt_tokens: list[PromptToken] = []
        if params.prompt_logprobs is not None:
            self._prompt_tokens.append(PromptToken(*names(prompt_ids[0]), prompt_ids[0]))

    def score(self, token_id: int, logprobs: Logprobs) -> None:
        """Takes in what is known of the next token of the prompt, behind the first."""
        named = self._named(token_id, logprobs)
        self._prompt_tokens.append(
            PromptToken(
                named.chosen.token, named.chosen.bytes, token_id, named.chosen.logprob, logprobs.rank, named.top
            )
        )

    def append(self, token_id: int, logprobs: Logprobs | None = None) -> FinishReason | None:
        """Takes in the next token. Gives the reason where the answer ends with it."""
        ends = self._guide.ends_with(token_id)
        self.num_output += 1
        if self._request.sampling.return_token_ids:
            self._token_ids.append(token_id)
        if not ends:
            self._guide.append(token_id)
        return self._say(token_id, ends, self._named(token_id, logprobs) if logprobs else None)

    def tell(self, num_cached: int, reason: FinishReason | None = None, error: ChatError | None = None) -> None:
        """Hands on what is new, and the end with its reason.

        Args:
            num_cached: tokens of the prompt that were served from the prefix cache.
            reason, error: of the end.
        """
        event = TokenEvent(
            text=self._text,
            num_input_tokens=len(self._request.prompt_ids),
            num_output_tokens=self.num_output,
            num_cached_tokens=num_cached,
            logprobs=tuple(self._logprobs),
            finish_reason=reason,
            error=error,
            prompt_tokens=tuple(self._prompt_tokens),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self._prompt_token_ids,
            reasoning=self._reasoning,
            tool_calls=tuple(self._calls),
            num_reasoning_tokens=self._answer.num_reasoning,
        )
        self._reasoning, self._calls = "", []
        self._text, self._logprobs, self._token_ids = "", [], []
        self._prompt_tokens, self._prompt_token_ids = [], ()
        self._sink(event)

    def _say(self, token_id: int, ends: bool, logprobs: TokenLogprobs | None) -> FinishReason | None:
        """Adds what the newest token says; it `ends` the answer or not. Gives the reason where the answer is over."""
        answer, num_output = self._answer, self.num_output
        if ends:
            self._take(answer.close(token_id, logprobs))
            return self._own_reason
        may_stop = num_output >= self._request.sampling.min_tokens
        self._take(answer.push(token_id, may_stop, logprobs))
        self._follow_calls()
        is_full, is_finished = num_output >= self._request.max_tokens, self._guide.is_finished or self._is_called
        if (is_full or is_finished) and not answer.stopped:
            self._take(answer.flush())  # which may complete a stop string
        if answer.stopped or is_finished:
            return self._own_reason
        return FinishReason.LENGTH if is_full else None

    def _follow_calls(self) -> None:
        """Once the model begins a call, that has to follow the grammar of calls, where there is one.

        Without one, the answer that may have a single call is over when that has been written.
        """
        opening = self._answer.opening
        if opening is self._opening:
            return
        self._opening = opening
        if opening:
            self._guide.open_call(opening.text)
        elif self._answer.num_calls and not self._guide.has_calls and self._request.constraint is None:
            self._is_called = self._request.reply is not None and self._request.reply.single

    def _take(self, said: Said) -> None:
        self._text += said.text
        self._reasoning += said.reasoning
        self._calls += said.calls
        self._logprobs += said.logprobs

    @property
    def _own_reason(self) -> FinishReason:
        """The reason of an answer that ended by itself."""
        reply = self._request.reply
        calls = self._answer.num_calls and reply and not reply.named
        return FinishReason.TOOL_CALLS if calls else FinishReason.STOP

    def _named(self, token_id: int, logprobs: Logprobs) -> TokenLogprobs:
        def named(token: int, logprob: float) -> Alternative:
            return Alternative(*self._names(token), logprob, token)

        return TokenLogprobs(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))
