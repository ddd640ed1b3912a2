"""A request inside the engine: its sequence, how its tokens are chosen, its text, and what its caller is to hear."""

from __future__ import annotations

import time

from tokenizers import Tokenizer

from chat_engine.errors import ChatError
from chat_engine.native.sampler import Logprobs, Sampled, SamplingState
from chat_engine.native.sequence import Sequence
from chat_engine.native.token_rules import TokenRules
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
from chat_engine.service.door import Progress
from chat_engine.text.answer import AnswerText, Said
from chat_engine.text.detokenizer import TextStream, TokenNames


class Running:
    """One request. Tokens and scores come in; `tell` hands on what they have added since the last time.

    Args:
        request: what is asked for.
        sink: where events go.
        stop_ids: tokens that end the answer.
        rules: what the checkpoint rules out.
        tokenizer: turns ids into text.
        names: of single tokens.
    """

    def __init__(
        self,
        request: ChatRequest,
        sink: Sink,
        stop_ids: frozenset[int],
        rules: TokenRules,
        tokenizer: Tokenizer,
        names: TokenNames,
    ) -> None:
        params, prompt_ids = request.sampling, request.prompt_ids
        self.request = request
        self.sequence = Sequence(request)
        self.sampling = SamplingState.start(params, request.seed, stop_ids, prompt_ids, rules)
        self._sink = sink
        self._stop_ids = stop_ids
        self._names = names
        skips, echoes = params.skip_special_tokens, bool(request.echo)
        self._stream: TextStream | None = None
        self._answer: AnswerText | None = None
        if request.reply is None:
            self._stream = TextStream(tokenizer, prompt_ids, params.stop, skip_special_tokens=skips, echo=echoes)
        else:
            self._answer = AnswerText(
                tokenizer, request.reply, prompt_ids, params.stop, skip_special_tokens=skips, echo=echoes
            )
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

    @property
    def progress(self) -> Progress:
        """How far it got."""
        sequence = self.sequence
        return Progress(sequence.num_output, sequence.num_cached, sequence.first_scheduled, sequence.first_token)

    def note_scores(self, scored: range, scores: tuple[Logprobs, ...]) -> None:
        """Takes in what is known of the tokens of the prompt behind the places in `scored`."""
        for place, logprobs in zip(scored, scores, strict=True):
            token_id = self.sequence.tokens[place + 1]
            named = self._named(token_id, logprobs)
            self._prompt_tokens.append(
                PromptToken(
                    named.chosen.token, named.chosen.bytes, token_id, named.chosen.logprob, logprobs.rank, named.top
                )
            )

    def append(self, choice: Sampled) -> FinishReason | None:
        """Takes in the next token. Gives the reason where the answer ends with it."""
        sequence, token_id = self.sequence, choice.token_id
        if sequence.first_token is None:
            sequence.first_token = time.monotonic()
        sequence.tokens.append(token_id)
        self.sampling.append(token_id)
        if self.request.sampling.return_token_ids:
            self._token_ids.append(token_id)
        logprobs = self._named(token_id, choice.logprobs) if choice.logprobs else None
        if self._answer:
            return self._say_parts(self._answer, token_id, logprobs)
        if logprobs:
            self._logprobs.append(logprobs)
        return self._say(token_id)

    def tell(self, reason: FinishReason | None = None, error: ChatError | None = None) -> None:
        """Hands on what is new, and the end with its reason."""
        event = TokenEvent(
            text=self._text,
            num_input_tokens=self.sequence.num_prompt,
            num_output_tokens=self.sequence.num_output,
            num_cached_tokens=self.sequence.num_cached,
            logprobs=tuple(self._logprobs),
            finish_reason=reason,
            error=error,
            prompt_tokens=tuple(self._prompt_tokens),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self._prompt_token_ids,
            reasoning=self._reasoning,
            tool_calls=tuple(self._calls),
            num_reasoning_tokens=self._answer.num_reasoning if self._answer else 0,
        )
        self._reasoning, self._calls = "", []
        self._text, self._logprobs, self._token_ids = "", [], []
        self._prompt_tokens, self._prompt_token_ids = [], ()
        self._sink(event)

    def _say(self, token_id: int) -> FinishReason | None:
        """Adds the text of the newest token. Gives the reason where the answer ends with it."""
        stream, num_output = self._stream, self.sequence.num_output
        assert stream
        if token_id in self._stop_ids:
            self._text += stream.close(token_id)
            return FinishReason.STOP
        self._text += stream.push(token_id, may_stop=num_output >= self.request.sampling.min_tokens)
        is_full = num_output >= self.request.max_tokens
        if is_full and not stream.stopped:
            self._text += stream.flush()  # which may complete a stop string
        if stream.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if is_full else None

    def _say_parts(self, answer: AnswerText, token_id: int, logprobs: TokenLogprobs | None) -> FinishReason | None:
        """The same where the answer is taken apart."""
        num_output = self.sequence.num_output
        if token_id in self._stop_ids:
            self._take(answer.close(token_id, logprobs))
            return self._ended(answer)
        self._take(answer.push(token_id, num_output >= self.request.sampling.min_tokens, logprobs))
        is_full = num_output >= self.request.max_tokens
        if is_full and not answer.stopped:
            self._take(answer.flush())
        if answer.stopped:
            return self._ended(answer)
        return FinishReason.LENGTH if is_full else None

    def _take(self, said: Said) -> None:
        self._text += said.text
        self._reasoning += said.reasoning
        self._calls += said.calls
        self._logprobs += said.logprobs

    def _ended(self, answer: AnswerText) -> FinishReason:
        """The reason of an answer that ended by itself."""
        reply = self.request.reply
        calls = answer.num_calls and reply and not reply.named
        return FinishReason.TOOL_CALLS if calls else FinishReason.STOP

    def _named(self, token_id: int, logprobs: Logprobs) -> TokenLogprobs:
        def named(token: int, logprob: float) -> Alternative:
            return Alternative(*self._names(token), logprob, token)

        return TokenLogprobs(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))
