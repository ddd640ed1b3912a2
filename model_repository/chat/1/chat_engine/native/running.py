"""A request inside the engine: its sequence, how its tokens are chosen, and what its caller is to hear."""

from __future__ import annotations

import time

from tokenizers import Tokenizer

from chat_engine.answering.guide import Guide
from chat_engine.answering.telling import Logprobs, Telling
from chat_engine.errors import ChatError
from chat_engine.native.sampler import Sampled, SamplingState
from chat_engine.native.sequence import Sequence
from chat_engine.native.token_rules import TokenRules
from chat_engine.protocol import Sink
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service.door import Progress
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
        places: where a stop string may end it; None: anywhere.
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
        self.request = request
        self.sequence = Sequence(request)
        self.guide = guide
        self.sampling = SamplingState.start(request.sampling, request.seed, guide.stop_ids, request.prompt_ids, rules)
        self.sampling.guide = guide
        self._telling = Telling(request, sink, guide, tokenizer, names, places)

    @property
    def progress(self) -> Progress:
        """How far it got."""
        sequence = self.sequence
        return Progress(sequence.num_output, sequence.num_cached, sequence.first_scheduled, sequence.first_token)

    def note_scores(self, scored: range, scores: tuple[Logprobs, ...]) -> None:
        """Takes in what is known of the tokens of the prompt behind the places in `scored`."""
        for place, logprobs in zip(scored, scores, strict=True):
            self._telling.score(self.sequence.tokens[place + 1], logprobs)

    def append(self, choice: Sampled) -> FinishReason | None:
        """Takes in the next token. Gives the reason where the answer ends with it."""
        sequence, token_id = self.sequence, choice.token_id
        if sequence.first_token is None:
            sequence.first_token = time.monotonic()
        sequence.tokens.append(token_id)
        self.sampling.append(token_id)
        return self._telling.append(token_id, choice.logprobs)

    def tell(self, reason: FinishReason | None = None, error: ChatError | None = None) -> None:
        """Hands on what is new, and the end with its reason."""
        self._telling.tell(self.sequence.num_cached, reason, error)
