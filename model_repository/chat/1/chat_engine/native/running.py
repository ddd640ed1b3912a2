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
from chat_engine.request import Alternative, ChatRequest, FinishReason, PromptToken, TokenEvent, TokenLogprobs
from chat_engine.service.door import Progress
from chat_engine.text.detokenizer import TextStream, TokenNames


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
    ) -> None:
        params, prompt_ids = request.sampling, request.prompt_ids
        self.request = request
        self.sequence = Sequence(request)
        self.guide = guide
        self.sampling = SamplingState.start(params, request.seed, guide.stop_ids, prompt_ids, rules)
        self.sampling.guide = guide
        self._sink = sink
        self._names = names
        self._stream = TextStream(
            tokenizer,
            prompt_ids,
            params.stop,
            skip_special_tokens=params.skip_special_tokens,
            echo=bool(request.echo),
            places=guide.grammar.places(max(map(len, params.stop))) if guide.grammar and params.stop else None,
        )
        # What the caller has not heard yet; from the start that is what only the first event has.
        self._text = request.echo
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
        if choice.logprobs:
            self._logprobs.append(self._named(token_id, choice.logprobs))
        if not ends:
            self.guide.append(token_id)
        return self._say(token_id, ends)

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
        )
        self._text, self._logprobs, self._token_ids = "", [], []
        self._prompt_tokens, self._prompt_token_ids = [], ()
        self._sink(event)

    def _say(self, token_id: int, ends: bool) -> FinishReason | None:
        """Adds the text of the newest token, which `ends` the answer or not. Gives the reason where it is over now."""
        stream, num_output = self._stream, self.sequence.num_output
        if ends:
            self._text += stream.close(token_id)
            return FinishReason.STOP
        self._text += stream.push(token_id, may_stop=num_output >= self.request.sampling.min_tokens)
        is_full, is_finished = num_output >= self.request.max_tokens, self.guide.is_finished
        if (is_full or is_finished) and not stream.stopped:
            self._text += stream.flush()  # which may complete a stop string
        if stream.stopped or is_finished:
            return FinishReason.STOP
        return FinishReason.LENGTH if is_full else None

    def _named(self, token_id: int, logprobs: Logprobs) -> TokenLogprobs:
        def named(token: int, logprob: float) -> Alternative:
            return Alternative(*self._names(token), logprob, token)

        return TokenLogprobs(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))
