"""A request inside the engine: its sequence, how its tokens are chosen, its text, and what its caller is to hear."""

from __future__ import annotations

import time

from tokenizers import Tokenizer

from chat_engine.errors import ChatError
from chat_engine.native.guide import Guide
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
from chat_engine.text.answer import CallOpening, Said, answer_text
from chat_engine.text.detokenizer import TokenNames
from chat_engine.text.stop_strings import Places


class Running:
    """One request. Tokens and scores come in; `tell` hands on what they have added since the last time.

    Args:
        request: what is asked for.
        sink: where events go.
        guide: which tokens end the answer, and what it must follow.
        rules: what the checkpoint rules out.
        tokenizer: turns ids into text.
        names: of single tokens.
    """

    def __init__(
        self,
        request: ChatRequest,
        sink: Sink,
        guide: Guide,
        rules: TokenRules,
        tokenizer: Tokenizer,
        names: TokenNames,
        places: Places | None = None,
    ) -> None:
        params, prompt_ids = request.sampling, request.prompt_ids
        self.request = request
        self.sequence = Sequence(request)
        self.guide = guide
        self.sampling = SamplingState.start(params, request.seed, guide.stop_ids, prompt_ids, rules)
        self.sampling.guide = guide
        self._sink = sink
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
        ends = self.guide.ends_with(token_id)
        if sequence.first_token is None:
            sequence.first_token = time.monotonic()
        sequence.tokens.append(token_id)
        self.sampling.append(token_id)
        if self.request.sampling.return_token_ids:
            self._token_ids.append(token_id)
        if not ends:
            self.guide.append(token_id)
        logprobs = self._named(token_id, choice.logprobs) if choice.logprobs else None
        return self._say(token_id, ends, logprobs)

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
            num_reasoning_tokens=self._answer.num_reasoning,
        )
        self._reasoning, self._calls = "", []
        self._text, self._logprobs, self._token_ids = "", [], []
        self._prompt_tokens, self._prompt_token_ids = [], ()
        self._sink(event)

    def _say(self, token_id: int, ends: bool, logprobs: TokenLogprobs | None) -> FinishReason | None:
        """Adds what the newest token says; it `ends` the answer or not. Gives the reason where the answer is over."""
        answer, num_output = self._answer, self.sequence.num_output
        if ends:
            self._take(answer.close(token_id, logprobs))
            return self._own_reason
        may_stop = num_output >= self.request.sampling.min_tokens
        self._take(answer.push(token_id, may_stop, logprobs))
        self._guide_calls()
        is_full, is_finished = num_output >= self.request.max_tokens, self.guide.is_finished
        if (is_full or is_finished) and not answer.stopped:
            self._take(answer.flush())  # which may complete a stop string
        if answer.stopped or is_finished:
            return self._own_reason
        return FinishReason.LENGTH if is_full else None

    def _guide_calls(self) -> None:
        """Once the model begins a call, that has to follow the grammar of calls."""
        opening = self._answer.opening
        if opening is not self._opening:
            self._opening = opening
            if opening:
                self.guide.open_call(opening.text)

    def _take(self, said: Said) -> None:
        self._text += said.text
        self._reasoning += said.reasoning
        self._calls += said.calls
        self._logprobs += said.logprobs

    @property
    def _own_reason(self) -> FinishReason:
        """The reason of an answer that ended by itself."""
        reply = self.request.reply
        calls = self._answer.num_calls and reply and not reply.named
        return FinishReason.TOOL_CALLS if calls else FinishReason.STOP

    def _named(self, token_id: int, logprobs: Logprobs) -> TokenLogprobs:
        def named(token: int, logprob: float) -> Alternative:
            return Alternative(*self._names(token), logprob, token)

        return TokenLogprobs(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))
