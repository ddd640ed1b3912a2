"""The engine: one thread owns the model and loops schedule, run, postprocess."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from chat_engine.answering.grammar import Grammars
from chat_engine.answering.guide import guide_of
from chat_engine.config import EngineConfig
from chat_engine.errors import ChatError, NotComputedError, RequestCancelledError
from chat_engine.native.kv_cache import KVCache
from chat_engine.native.runner import Row, Runner, Started
from chat_engine.native.running import Running
from chat_engine.native.sampler import NO_TOKEN, Sampled, Scored, Targets
from chat_engine.native.scheduler import Chunk, Pace, Scheduler
from chat_engine.native.sequence import Sequence
from chat_engine.native.speculation import Guesses
from chat_engine.protocol import Sink
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service.door import Door
from chat_engine.service.model_thread import ModelThread
from chat_engine.text.detokenizer import TokenNames

log = logging.getLogger(__name__)

Result = Sampled | Scored | None
_NOT_COMPUTED = Sampled(NO_TOKEN, None)
_UNKNOWN = -1  # a token that the step before is still computing


@dataclass
class _Flight:
    """A step on its way: its chunks, and those of them whose results do not count."""

    chunks: list[Chunk]
    begun: float
    started: Started | None
    void: set[Sequence] = field(default_factory=set)


class NativeEngine(Door[Running]):
    """Continuous batching over a `Runner`; see `protocol.Engine` for the calls.

    Args:
        config: limits.
        runner: the loaded model.
        tokenizer: turns ids into text.
        on_failure: called once, on the engine's thread, when a step has failed and everything in flight has been told.
        thread: the one that has loaded the model; the engine ends it in `close`. Without one, `step` is called by hand.
        end_ids: tokens that end an answer, beside those that the runner knows.
        grammars: compiles what answers must follow; closed with the engine. None: such requests are refused.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        tokenizer: Tokenizer,
        on_failure: Callable[[], None] | None = None,
        thread: ModelThread | None = None,
        end_ids: frozenset[int] = frozenset(),
        grammars: Grammars | None = None,
    ) -> None:
        super().__init__(config.max_sequences + config.queue_room, config.stall_seconds, runner.longest_pass)
        limits = runner.limits
        self._runner = runner
        self._tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._end_ids = runner.defaults.eos_ids | end_ids
        self._grammars = grammars
        self._on_failure = on_failure
        self.cache = KVCache(limits.num_blocks, limits.block_size, config.prefix_caching)
        self._ngram = config.speculation.ngram if config.speculation else None
        self.scheduler = Scheduler(
            self.cache, config.max_sequences, limits.max_step_tokens, limits.max_scored_tokens,
            self._ngram.max_sequences if self._ngram else 0,
            Pace(config.max_gap_seconds, runner.longest_pass / max(1, limits.max_step_tokens)),
        )  # fmt: skip
        self._running: dict[Sequence, Running] = {}
        self._landed = 0.0
        self._flight: _Flight | None = None
        self._generated = self._guessed = self._guessed_right = 0
        self._thread = thread
        if thread:
            thread.start(self._loop)

    # Calls from other threads; the rest of them is the door's.

    def submit(self, request: ChatRequest, sink: Sink) -> None:
        """See `protocol.Engine`. It compiles the request's grammar, in the caller's thread: InvalidArgumentError."""
        guide, places = guide_of(request, self._end_ids, self._grammars)
        rules = self._runner.defaults.rules
        running = Running(request, sink, guide, rules, self._tokenizer, self._names, places)
        if self._ngram and not running.sampling.follows_tokens:
            running.sequence.guesses = Guesses(self._ngram)
        self._enter(request.id, running)

    def close(self) -> None:
        """See `protocol.Engine`."""
        super().close()
        if self._thread:
            self._thread.close()
        else:
            self._end_all()
        if self._grammars:
            self._grammars.close()

    # The engine's thread.

    def step(self) -> bool:
        """Computes one step and hands out its tokens. False when there was nothing to compute.

        Where the runner runs ahead, the next step is started first, as far as it is known already.
        """
        self._take_in()
        flight = self._flight or self._take_off()
        if flight:
            self._flight = self._follow(flight) if self._runner.runs_ahead else None
            self._land(flight)
            self._report(steps=1)
        return flight is not None

    def _take_in(self) -> None:
        arrived, cancelled = self._take()
        self._add(arrived)
        if cancelled:
            for running in [r for r in self._running.values() if r.request.id in cancelled]:
                self._end(running, FinishReason.CANCELLED, RequestCancelledError("the request was cancelled"))

    def _add(self, arrived: list[Running]) -> None:
        for running in arrived:
            self._running[running.sequence] = running
            self.scheduler.add(running.sequence)

    def _take_off(self) -> _Flight | None:
        """Starts the next step; None where there is nothing to compute."""
        chunks = self.scheduler.schedule()
        self._report()  # before the step ends, too: one that hangs may be the first
        begun = time.monotonic()
        return _Flight(chunks, begun, self._start([self._row(chunk) for chunk in chunks])) if chunks else None

    def _follow(self, flight: _Flight) -> _Flight | None:
        """Starts the step behind one that is on its way: every sequence gets one more token, whichever comes first.

        None where that is not all that can be known of it, and the step has to wait.
        """
        if flight.started is None or flight.void or self.scheduler.has_room:
            return None
        places = {chunk.sequence: place for place, chunk in enumerate(flight.chunks)}
        chunks, rows = [], []
        for sequence in self.scheduler.running:
            place, sampling = places.get(sequence), self._running[sequence].sampling
            if place is None or sampling.follows_tokens or not flight.chunks[place].samples or sequence.guesses:
                return None
            if sequence.num_output + 1 >= sequence.request.max_tokens:
                continue
            length = sequence.num_tokens + 1
            if not self.cache.grow(sequence.table, length):
                return None
            blocks = sequence.table.blocks[: self.cache.blocks_for(length)]
            rows.append(Row([_UNKNOWN], length, blocks, sampling.after(1), follows=place))
            chunks.append(Chunk(sequence, 1))
        begun = time.monotonic()
        return _Flight(chunks, begun, self._start(rows)) if chunks else None

    def _land(self, flight: _Flight) -> None:
        """Waits for a step, and hands out its tokens."""
        results = self._results(flight)
        if self._flight and flight.started:
            self._flight.void.update(flight.chunks[place].sequence for place in flight.started.stale)
        for chunk, result in zip(flight.chunks, results, strict=True):
            running = self._running.get(chunk.sequence)
            if running and chunk.sequence not in flight.void:  # it may have ended since
                self._postprocess(running, chunk, result)
        if not self._running:
            self._flight = None

    def _results(self, flight: _Flight) -> list[Result]:
        """What the model makes of each chunk. Raises when it computes nothing at all any more."""
        results = self._wait_for(flight.started)
        if results is not None:
            self.scheduler.step_limit.note_whole()
            self._note_pace(flight)
            return results
        self._flight = None  # what follows a step that has failed counts no more than that
        results = self._run_halves(flight.chunks)
        if all(map(_is_missing, results)):
            self._probe()
        elif not any(map(_is_missing, results)):  # the size of the step was the matter: memory is short
            self.scheduler.step_limit.note_in_parts(sum(chunk.count for chunk in flight.chunks))
        return results

    def _note_pace(self, flight: _Flight) -> None:
        """One that was started while another was on its way has begun when that landed."""
        now = time.monotonic()
        tokens = sum(chunk.count for chunk in flight.chunks if chunk.count > 1)
        self.scheduler.pace.note(tokens, now - max(flight.begun, self._landed))
        self._landed = now

    def _run_halves(self, chunks: list[Chunk]) -> list[Result]:
        """After a failure: half after half, until those that the model cannot compute are alone."""
        if len(chunks) == 1:
            return [_NOT_COMPUTED]
        middle = len(chunks) // 2
        halves = chunks[:middle], chunks[middle:]
        return [result for half in halves for result in self._try_to_run(half) or self._run_halves(half)]

    def _try_to_run(self, chunks: list[Chunk]) -> list[Result] | None:
        return self._wait_for(self._start([self._row(chunk) for chunk in chunks]))

    def _start(self, rows: list[Row]) -> Started | None:
        try:
            return self._runner.start(rows)
        except Exception:
            log.exception("the model could not compute a step of %d sequences", len(rows))
            return None

    def _wait_for(self, started: Started | None) -> list[Result] | None:
        try:
            return started.results() if started else None
        except Exception:
            log.exception("the model could not compute a step")
            return None

    def _probe(self) -> None:
        """Raises what the model raises, unless it still computes a token of nobody's."""
        table = self.cache.begin([0])
        if table is not None:
            try:
                self._runner.start([Row([0], 1, table.blocks, None)]).results()
            finally:
                self.cache.release(table)

    def _row(self, chunk: Chunk) -> Row:
        sequence = chunk.sequence
        begin, end = sequence.num_computed, sequence.num_computed + chunk.count
        length = end + len(chunk.guesses)
        makes_token = chunk.samples and sequence.request.max_tokens > 0
        return Row(
            tokens=[*sequence.tokens[begin:end], *chunk.guesses],
            length=length,
            blocks=sequence.table.blocks[: self.cache.blocks_for(length)],
            sampling=self._running[sequence].sampling if makes_token else None,
            targets=_targets(chunk),
            guesses=len(chunk.guesses),
        )

    def _postprocess(self, running: Running, chunk: Chunk, result: Result) -> None:
        if error := running.guide.error:
            self._end(running, FinishReason.ERROR, error)
        elif _is_missing(result):  # its blocks are not offered to others
            missing = NotComputedError("internal error: the model could not compute this request")
            self._end(running, FinishReason.ERROR, missing)
        else:
            self._go_on(running, chunk, result)

    def _go_on(self, running: Running, chunk: Chunk, result: Result) -> None:
        scores = result.scores if result else ()
        if scores:
            running.note_scores(chunk.scored, scores)
        self.scheduler.advance(chunk)
        reason = None
        if isinstance(result, Sampled):
            try:
                reason = self._append(running, chunk, result)
            except Exception:  # what a model writes is read by code of many formats: it ends this request and no other
                log.exception("request %s: its answer could not be read", running.request.id)
                self._end(running, FinishReason.ERROR, NotComputedError("internal error: the answer could not be read"))
                return
        elif not chunk.sequence.num_uncomputed:  # only the prompt was wanted
            reason = FinishReason.LENGTH
        elif not scores:  # the prompt goes on, and there is nothing to tell
            return
        if reason:
            self._end(running, reason)
        else:
            running.tell()

    def _append(self, running: Running, chunk: Chunk, result: Sampled) -> FinishReason | None:
        """Takes in a chunk's token, and those behind its guesses as long as these were right."""
        self._generated += 1
        reason, right = running.append(result), 0
        for guess, behind in zip(chunk.guesses, result.behind_guesses, strict=True):
            if reason or chunk.sequence.tokens[-1] != guess or _is_missing(behind):
                break
            self.scheduler.advance(Chunk(chunk.sequence, 1))
            self._generated += 1
            reason, right = running.append(behind), right + 1
        if chunk.guesses and chunk.sequence.guesses:
            chunk.sequence.guesses.judge(len(chunk.guesses), right, chunk.sequence.num_tokens)
            self._guessed += len(chunk.guesses)
            self._guessed_right += right
        return reason

    def _end(self, running: Running, reason: FinishReason, error: ChatError | None = None) -> None:
        """The one place where a request ends: frees its blocks, makes room, tells the caller."""
        self.scheduler.remove(running.sequence)
        del self._running[running.sequence]
        self._ended(running.request, reason, running.progress)
        running.tell(reason, error)

    def _end_all(self) -> None:
        """Ends everything, also what has not been taken in yet."""
        self._flight = None
        arrived, _ = self._take()
        self._add(arrived)
        error = self._stop_error()
        for running in list(self._running.values()):
            try:
                self._end(running, FinishReason.ERROR, error)
            except Exception:  # noqa: PERF203 - the others must hear of it all the same
                log.exception("request %s could not be told that it has ended", running.request.id)
        self._report()

    def _report(self, steps: int = 0) -> None:
        with self._numbers() as stats:
            stats.running = len(self.scheduler.running)
            stats.waiting = len(self.scheduler.waiting)
            stats.kv_cache_usage = self.cache.usage
            stats.preemptions = self.scheduler.preemptions
            stats.generation_tokens = self._generated
            stats.drafted_tokens, stats.accepted_tokens = self._guessed, self._guessed_right
            if steps:
                stats.steps += steps
                stats.last_step = time.time()

    def _loop(self) -> None:
        try:
            while self._wait_for_work(idle=not self._running):
                self.step()
        except Exception:
            log.exception("a step failed; the engine stops")
            self._fail()
            self._end_all()
            if self._on_failure:
                self._on_failure()
        else:
            self._end_all()


def _is_missing(result: Result) -> bool:
    """Whether the model failed on it, or gave no numbers."""
    return isinstance(result, Sampled) and result.token_id == NO_TOKEN


def _targets(chunk: Chunk) -> Targets | None:
    """What the chunk is to score: each token behind one of `chunk.scored`."""
    sequence, top = chunk.sequence, chunk.sequence.request.sampling.prompt_logprobs
    if top is None or not (scored := chunk.scored):
        return None
    token_ids = sequence.tokens[scored.start + 1 : scored.stop + 1]
    return Targets(scored.start - sequence.num_computed, token_ids, top)
