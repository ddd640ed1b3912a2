"""The engine: one thread owns the model and loops schedule, run, postprocess."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from tokenizers import Tokenizer

from chat_engine.config import EngineConfig
from chat_engine.errors import ChatError, DrainingError, EngineFailedError, OverloadedError, RequestCancelledError
from chat_engine.native.kv_cache import KVCache
from chat_engine.native.model_runner import Row, Runner
from chat_engine.native.sampler import NO_TOKEN, Logprobs, Sampled, SamplingState, Scored, Targets
from chat_engine.native.scheduler import Chunk, Scheduler
from chat_engine.native.sequence import Sequence
from chat_engine.native.token_rules import TokenRules
from chat_engine.protocol import EngineStats, RequestTimes, Sink
from chat_engine.request import Alternative, ChatRequest, FinishReason, PromptToken, TokenEvent, TokenLogprobs
from chat_engine.service.model_thread import ModelThread
from chat_engine.text.detokenizer import TextStream, TokenNames

log = logging.getLogger(__name__)

_MAX_KEPT_TIMES = 10_000


class _Running:
    """A request inside the engine: its sequence, how its tokens are chosen, its text, and where events go."""

    def __init__(
        self, request: ChatRequest, sink: Sink, stop_ids: frozenset[int], rules: TokenRules, tokenizer: Tokenizer
    ) -> None:
        params = request.sampling
        self.request = request
        self.sink = sink
        self.stop_ids = stop_ids
        self.sequence = Sequence(request)
        self.sampling = SamplingState.start(params, request.seed, stop_ids, request.prompt_ids, rules)
        self.text = TextStream(
            tokenizer,
            request.prompt_ids,
            params.stop,
            skip_special_tokens=params.skip_special_tokens,
            echo=bool(request.echo),
        )
        self.echo = request.echo
        self.began = False  # whether the first event has been handed out
        self.token_ids: list[int] = []  # those made and those scored since the last event, where asked for
        self.prompt_tokens: list[PromptToken] = []


class ChatEngine:
    """Continuous batching over a `Runner`; see `protocol.Engine` for the calls.

    Args:
        config: limits.
        runner: the loaded model.
        tokenizer: turns ids into text.
        on_failure: called once, on the engine's thread, when a step has failed and everything in flight has been told.
        thread: the one that has loaded the model; the engine ends it in `close`. Without one, `step` is called by hand.
        end_ids: tokens that end an answer, beside those that the runner knows.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        tokenizer: Tokenizer,
        on_failure: Callable[[], None] | None = None,
        thread: ModelThread | None = None,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        limits = runner.limits
        self._config = config
        self._runner = runner
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._eos_ids = runner.defaults.eos_ids | end_ids
        self._on_failure = on_failure
        self.cache = KVCache(limits.num_blocks, limits.block_size, config.prefix_caching)
        self.scheduler = Scheduler(self.cache, config.max_sequences, limits.max_step_tokens, limits.max_scored_tokens)
        self._running: dict[Sequence, _Running] = {}  # the engine's thread alone
        self._generated = 0
        self._changed = threading.Condition()  # guards what follows
        self._inbox: deque[_Running] = deque()
        self._cancelled: set[str] = set()
        self._open: set[str] = set()
        self._draining = False
        self._closed = False
        self._failed = False
        self._stats = EngineStats()
        self._progress = time.monotonic()
        self._thread = thread
        if thread:
            thread.start(self._loop)

    # Calls from other threads.

    def wait_for_room(self, timeout: float) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_room or self._refusal() is not None, timeout)

    def submit(self, request: ChatRequest, sink: Sink) -> None:
        """See `protocol.Engine`."""
        stop_ids = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            stop_ids |= self._eos_ids
        running = _Running(request, sink, stop_ids, self._runner.defaults.rules, self._tokenizer)
        with self._changed:
            refusal = self._refusal()
            if refusal:
                raise refusal
            if not self._has_room:
                raise OverloadedError(f"{len(self._open)} requests are running, as many as allowed; try again later")
            assert request.id not in self._open, "request ids must be unique"
            if not self._open:
                self._progress = time.monotonic()  # the time without work is no stall
            self._open.add(request.id)
            self._inbox.append(running)
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """See `protocol.Engine`."""
        with self._changed:
            if request_id in self._open:
                self._cancelled.add(request_id)
                self._changed.notify_all()

    def stats(self) -> EngineStats:
        """See `protocol.Engine`."""
        with self._changed:
            taken, self._stats.times = self._stats.times, []
            now = self._stats
            return EngineStats(**{**vars(now), "finished": Counter(now.finished), "times": taken})

    def is_ready(self) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            if self._refusal():
                return False
            stalled = time.monotonic() - self._progress > self._config.stall_seconds
            return not (self._open and stalled)

    def drain(self, timeout: float) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """See `protocol.Engine`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.close()
        else:
            self._end_all(DrainingError("the server is shutting down"))

    # The engine's thread.

    def step(self) -> bool:
        """Takes in what is new, computes one step, hands out its tokens. False when there was nothing to compute."""
        self._take_in()
        chunks = self.scheduler.schedule()
        if chunks:
            self._note_begin()
            failed = self._compute(chunks)
            if len(failed) == len(chunks):
                self._probe()
            for chunk in failed:
                self._end(self._running[chunk.sequence], FinishReason.ERROR, _not_computed())
        self._note_state(stepped=bool(chunks))
        return bool(chunks)

    def _compute(self, chunks: list[Chunk]) -> list[Chunk]:
        """Runs the model and hands out what comes; returns the chunks that it could not compute.

        Where it fails, the newest are left out, half after half, until those that it cannot compute are alone.
        """
        try:
            sampled = self._runner.run([self._row(chunk) for chunk in chunks])
        except Exception:
            log.exception("the model could not compute a step of %d sequences", len(chunks))
        else:
            self._postprocess(chunks, sampled)
            return []
        if len(chunks) == 1:
            return chunks
        middle = len(chunks) // 2
        return self._compute(chunks[:middle]) + self._compute(chunks[middle:])

    def _probe(self) -> None:
        """After a step of which nothing could be computed: raises unless the model still computes anything at all."""
        table = self.cache.begin([0])
        if table is not None:
            try:
                self._runner.run([Row([0], 1, table.blocks, None)])
            finally:
                self.cache.release(table)

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self.step()
            self._end_all(DrainingError("the server is shutting down"))
        except Exception:
            log.exception("a step failed; the engine stops")
            with self._changed:
                self._failed = True
            self._end_all(EngineFailedError("the engine failed while this request was running; it restarts"))
            if self._on_failure:
                self._on_failure()

    def _wait_for_work(self) -> bool:
        """Returns when something is to be done; False once closed."""
        with self._changed:
            if not self._running:
                self._changed.wait_for(lambda: self._inbox or self._closed)
                self._progress = time.monotonic()
                if self._inbox:
                    self._stats.last_step = time.time()  # so that the time without work looks like no stall outside
            return not self._closed

    def _take_in(self) -> None:
        with self._changed:
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, set()
        for running in arrived:
            self._running[running.sequence] = running
            self.scheduler.add(running.sequence)
        if cancelled:
            for running in [r for r in self._running.values() if r.request.id in cancelled]:
                self._end(running, FinishReason.CANCELLED, RequestCancelledError("the request was cancelled"))

    def _row(self, chunk: Chunk) -> Row:
        sequence = chunk.sequence
        begin, end = sequence.num_computed, sequence.num_computed + chunk.count
        makes_token = chunk.samples and sequence.request.max_tokens > 0
        return Row(
            tokens=sequence.tokens[begin:end],
            length=end,
            blocks=sequence.table.blocks[: self.cache.blocks_for(end)],
            sampling=self._running[sequence].sampling if makes_token else None,
            targets=_targets(chunk),
        )

    def _postprocess(self, chunks: list[Chunk], found: list[Sampled | Scored | None]) -> None:
        for chunk, result in zip(chunks, found, strict=True):
            running = self._running[chunk.sequence]
            if result is not None and result.scores:
                self._note_scores(running, chunk.scored, result.scores)
            self.scheduler.advance(chunk)
            if isinstance(result, Sampled) and result.token_id == NO_TOKEN:
                self._end(running, FinishReason.ERROR, _not_computed())
            elif isinstance(result, Sampled):
                self._append(running, result)
            elif not chunk.sequence.num_uncomputed:  # only the prompt was wanted
                self._end(running, FinishReason.LENGTH)
            elif running.prompt_tokens:
                self._emit(running, "", ())

    def _note_scores(self, running: _Running, scored: range, scores: tuple[Logprobs, ...]) -> None:
        """Keeps for the next event what is known of the tokens behind those in `scored`."""
        for place, logprobs in zip(scored, scores, strict=True):
            token_id = running.sequence.tokens[place + 1]
            named = self._name(token_id, logprobs)
            running.prompt_tokens.append(
                PromptToken(
                    named.chosen.token, named.chosen.bytes, token_id, named.chosen.logprob, logprobs.rank, named.top
                )
            )

    def _append(self, running: _Running, choice: Sampled) -> None:
        """Adds a token to a sequence, and hands out its text or ends it."""
        sequence = running.sequence
        if sequence.first_token is None:
            sequence.first_token = time.monotonic()
        sequence.tokens.append(choice.token_id)
        self._generated += 1
        running.sampling.append(choice.token_id)
        if running.request.sampling.return_token_ids:
            running.token_ids.append(choice.token_id)
        logprobs = (self._name(choice.token_id, choice.logprobs),) if choice.logprobs else ()
        if choice.token_id in running.stop_ids:
            self._end(running, FinishReason.STOP, text=running.text.close(choice.token_id), logprobs=logprobs)
            return
        may_stop = sequence.num_output >= running.request.sampling.min_tokens
        text = running.text.push(choice.token_id, may_stop)
        if running.text.stopped:
            self._end(running, FinishReason.STOP, text=text, logprobs=logprobs)
        elif sequence.num_output >= running.request.max_tokens:
            self._end(running, FinishReason.LENGTH, text=text + running.text.flush(), logprobs=logprobs)
        else:
            self._emit(running, text, logprobs)

    def _end(
        self,
        running: _Running,
        reason: FinishReason,
        error: ChatError | None = None,
        text: str = "",
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> None:
        """The one place where a request ends: frees its blocks, makes room, tells the caller."""
        if reason is FinishReason.LENGTH and running.text.stopped:
            reason = FinishReason.STOP  # what was held back completed a stop string
        self.scheduler.remove(running.sequence)
        del self._running[running.sequence]
        self._note_end(running, reason)
        self._emit(running, text, logprobs, reason, error)

    def _emit(
        self,
        running: _Running,
        text: str,
        logprobs: tuple[TokenLogprobs, ...],
        reason: FinishReason | None = None,
        error: ChatError | None = None,
    ) -> None:
        sequence = running.sequence
        echo, running.echo = running.echo, ""
        prompt_token_ids = self._begin(running)
        prompt_tokens, running.prompt_tokens = running.prompt_tokens, []
        token_ids, running.token_ids = running.token_ids, []
        running.sink(
            TokenEvent(
                text=echo + text,
                num_input_tokens=sequence.num_prompt,
                num_output_tokens=sequence.num_output,
                num_cached_tokens=sequence.num_cached,
                logprobs=logprobs,
                finish_reason=reason,
                error=error,
                prompt_tokens=tuple(prompt_tokens),
                token_ids=tuple(token_ids),
                prompt_token_ids=prompt_token_ids,
            )
        )

    def _begin(self, running: _Running) -> tuple[int, ...]:
        """What only the first event of a request has: the ids of its prompt, and the first of its scored tokens."""
        if running.began:
            return ()
        running.began = True
        sampling, prompt = running.request.sampling, running.request.prompt_ids
        if sampling.prompt_logprobs is not None:
            running.prompt_tokens.insert(0, PromptToken(*self._names(prompt[0]), prompt[0]))
        return prompt if sampling.return_token_ids else ()

    def _end_all(self, error: ChatError) -> None:
        """Ends everything, also what has not been taken in yet."""
        with self._changed:
            arrived, self._inbox = self._inbox, deque()
        for running in arrived:
            self._running[running.sequence] = running
            self.scheduler.add(running.sequence)
        for running in list(self._running.values()):
            try:
                self._end(running, FinishReason.ERROR, error)
            except Exception:  # noqa: PERF203 - the others must hear of it all the same
                log.exception("request %s could not be told that it has ended", running.request.id)
        self._note_state(stepped=False)

    def _name(self, token_id: int, logprobs: Logprobs) -> TokenLogprobs:
        def named(token: int, logprob: float) -> Alternative:
            return Alternative(*self._names(token), logprob, token)

        return TokenLogprobs(named(token_id, logprobs.chosen), tuple(named(*pair) for pair in logprobs.top))

    # Shared state.

    @property
    def _has_room(self) -> bool:
        return len(self._open) < self._config.max_sequences + self._config.queue_room

    def _refusal(self) -> ChatError | None:
        if self._failed:
            return EngineFailedError("the engine has failed and restarts; try again later")
        if self._draining or self._closed:
            return DrainingError("the server is shutting down; try again elsewhere")
        return None

    def _note_end(self, running: _Running, reason: FinishReason) -> None:
        sequence, now = running.sequence, time.monotonic()
        arrival, first = running.request.arrival, sequence.first_token
        times = RequestTimes(
            queue=None if sequence.first_scheduled is None else sequence.first_scheduled - arrival,
            first_token=None if first is None else first - arrival,
            per_output_token=(now - first) / (sequence.num_output - 1) if first and sequence.num_output > 1 else None,
            total=now - arrival,
        )
        with self._changed:
            stats = self._stats
            stats.finished[reason] += 1
            if sequence.first_scheduled is not None:
                stats.prompt_tokens += sequence.num_prompt
                stats.prefix_cache_hit_tokens += sequence.num_cached
            if len(stats.times) < _MAX_KEPT_TIMES:
                stats.times.append(times)
            self._open.discard(running.request.id)
            self._cancelled.discard(running.request.id)
            self._changed.notify_all()

    def _note_begin(self) -> None:
        """What runs shows before the step ends: one that hangs may be the first."""
        with self._changed:
            self._note_sequences()

    def _note_state(self, stepped: bool) -> None:
        with self._changed:
            stats = self._stats
            self._note_sequences()
            stats.kv_cache_usage = self.cache.usage
            stats.preemptions = self.scheduler.preemptions
            stats.generation_tokens = self._generated
            self._progress = time.monotonic()
            if stepped:
                stats.steps += 1
                stats.last_step = time.time()

    def _note_sequences(self) -> None:
        self._stats.running = len(self.scheduler.running)
        self._stats.waiting = len(self.scheduler.waiting) + len(self._inbox)


def _targets(chunk: Chunk) -> Targets | None:
    """What the chunk is to score: each token behind one of `chunk.scored`."""
    sequence, top = chunk.sequence, chunk.sequence.request.sampling.prompt_logprobs
    if top is None or not (scored := chunk.scored):
        return None
    token_ids = sequence.tokens[scored.start + 1 : scored.stop + 1]
    return Targets(scored.start - sequence.num_computed, token_ids, top)


def _not_computed() -> EngineFailedError:
    return EngineFailedError("internal error: the model could not compute this request")
