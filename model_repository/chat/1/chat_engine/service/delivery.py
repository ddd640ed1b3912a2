"""Events from the engine to the callers, by threads of their own: sending must never hold up the engine.

A sender takes all that a request has pending and sends it as one response. Under load tokens gather and leave in fewer,
larger responses: while the senders are busy, and while a stream rests, because many are open on few cores.

A stream that has nothing to tell, because its request waits or is put back, says every few seconds that it lives.
What nobody takes is bounded, in bytes and in time; then the request is cancelled.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import monotonic as now
from typing import Protocol

from chat_engine.errors import ChatError, RequestCancelledError
from chat_engine.request import FinishReason, TokenEvent

log = logging.getLogger(__name__)

_SENDERS = 2
_CANCEL_POLL_SECONDS = 0.2  # asking costs Triton 0.1 to 0.2 ms for each open request
_STUCK_SECONDS = 6.0  # a response is handed over in less than a millisecond, however slow its reader is
_MAX_SCORED_TOKENS = 512  # of a prompt in one response; with 20 alternatives each that is about 1 MB
_SILENCE_SECONDS = 5.0  # after which a stream says that it lives, and how many tokens there are; idle limits are longer
_PATIENCE_SECONDS = 2.0  # with much that is pending: the scores of a long prompt come faster than they can be written
_STREAMS_PER_CORE = 4
_RESPONSES_PER_CORE = 150  # a second; one costs 0.3 to 0.4 ms of CPU, here, in tritonserver and in a client beside it
_ENTRY_BYTES = 64  # of a response without text, and twice for each log-probability in it, roughly


def rest_seconds(streams: int, cores: int) -> float:
    """How long a stream rests after a response while so many are open: not at all while they are few."""
    return streams / (_RESPONSES_PER_CORE * cores) if streams > _STREAMS_PER_CORE * cores else 0.0


class Channel(Protocol):
    """The way to one caller."""

    def send(self, event: TokenEvent) -> None:
        """Sends one response; the last one carries a finish reason. May raise when the caller is gone."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled."""
        ...


@dataclass(frozen=True)
class ReaderLimits:
    """How much of a stream may be pending, and how long a response may wait to be taken."""

    bytes: int = 8 << 20
    seconds: float = 60.0


class Mailbox:
    """What one request has pending."""

    def __init__(
        self,
        request_id: str,
        channel: Channel,
        stream: bool,
        post: Callable[[Mailbox], None],
        rest: Callable[[], float] = lambda: 0.0,
        limits: ReaderLimits | None = None,
        num_input_tokens: int = 0,
    ) -> None:
        """`post` puts it in line for a sender; `rest` tells how many seconds must lie between two responses."""
        self.request_id = request_id
        self.channel = channel
        self.streams = stream
        self.failure: RequestCancelledError | None = None  # why it takes nothing more but the end
        self._post = post
        self._rest = rest
        self._limits = limits or ReaderLimits()
        self._rests_until = 0.0
        self._told = now()
        self._lock = threading.Lock()
        self._pending: list[TokenEvent] = []
        self._pending_bytes = 0
        self._posted_at: float | None = None
        self._worth_sending = False  # what is pending; noted at each event, because answers can be long
        self._ended = False
        self._ended_by_failure = False
        self._so_far = TokenEvent("", num_input_tokens, 0, 0)  # what was sent, but for the counts empty

    def put(self, event: TokenEvent) -> None:
        """Takes an event from the engine (it is the request's sink)."""
        with self._lock:
            if self._ended_by_failure:
                return
            if self.failure is not None:
                if event.finish_reason is None:
                    return
                # Also where the engine was quicker than the cancellation: a part of the answer is lost.
                event = replace(event, finish_reason=FinishReason.CANCELLED, error=self.failure)
            self._pending.append(event)
            self._pending_bytes += _size(event)
            self._worth_sending |= self.streams and _is_worth_sending(event)
            self._ended |= event.finish_reason is not None
        self.offer()

    def give_up(self) -> RequestCancelledError | None:
        """Where a stream is taken too slowly: drops what is pending and says why, once."""
        with self._lock:
            if not self.streams or self._ended or self.failure is not None:
                return None
            reason = self._reason_to_give_up()
            if reason is not None:
                self.failure = RequestCancelledError(reason)
                self._pending, self._pending_bytes, self._worth_sending = [], 0, False
            return self.failure

    def fail(self, error: ChatError) -> None:
        """Ends the request with an error; what the engine may still put is not taken."""
        with self._lock:
            if self._ended:
                return
            self._ended = self._ended_by_failure = True
            end = replace(self._so_far, finish_reason=FinishReason.ERROR, error=self.failure or error)
            self._pending.append(end)
        self.offer()

    def offer(self) -> None:
        """Stands in line if there is something to send and it does not rest; the end of an answer waits for no rest."""
        with self._lock:
            if self._posted_at is not None or not self._is_due():
                return
            self._posted_at = now()
        self._post(self)

    def take(self) -> TokenEvent | None:
        """What is pending, as one event; if there is nothing, a sign of life. None: the end has been taken already.

        Nobody else takes until `settle` is called: the order must not change. It is all that is pending, unless that is
        the scores of a long prompt for a stream: no response is to be huge.
        """
        with self._lock:
            if not self._pending:
                self._told = now()
                return None if self._ended or not self.streams else self._so_far
            count = _portion(self._pending) if self.streams else len(self._pending)
            pending, self._pending = self._pending[:count], self._pending[count:]
            self._pending_bytes = sum(map(_size, self._pending))
            self._worth_sending = bool(self._pending)
            self._told = now()
            self._rests_until = self._told + self._rest()
            self._so_far = _counts(pending[-1])
        return merge(pending)

    def settle(self) -> None:
        """Says that what was taken has been sent; the mailbox stands in line again when more has come meanwhile."""
        with self._lock:
            self._posted_at = None
        self.offer()

    def _reason_to_give_up(self) -> str | None:
        limits = self._limits
        seconds = 0.0 if self._posted_at is None else now() - self._posted_at
        if self._pending_bytes > limits.bytes and seconds > _PATIENCE_SECONDS:
            return f"the answer is read too slowly: more than {limits.bytes} bytes of it are waiting"
        if seconds > limits.seconds:
            return f"the answer is read too slowly: a part of it has waited for {limits.seconds:g} seconds"
        return None

    def _is_due(self) -> bool:
        silent = self.streams and now() - self._told >= _SILENCE_SECONDS
        if self._ended or not self._pending:
            return bool(self._pending) or (silent and not self._ended)
        return (self._worth_sending or silent) and now() >= self._rests_until


class Delivery:
    """The sender threads, and the one that looks for callers who have cancelled and for what rests too long."""

    def __init__(
        self, cancel: Callable[[str], None], senders: int = _SENDERS, limits: ReaderLimits | None = None
    ) -> None:
        self._cancel = cancel
        self._limits = limits or ReaderLimits()
        self._posted: queue.SimpleQueue[Mailbox | None] = queue.SimpleQueue()
        self._open: dict[str, Mailbox] = {}
        self._streams = 0  # how many of those stream
        self._sending: dict[str, float] = {}  # since when, by request
        self._sent = now()  # when the last one was taken, whoever's
        self._cores = len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._senders = [threading.Thread(target=self._send_loop, name="sender", daemon=True) for _ in range(senders)]
        self._watcher = threading.Thread(target=self._watch_loop, name="cancel-watch", daemon=True)
        for thread in (*self._senders, self._watcher):
            thread.start()

    def open(self, request_id: str, channel: Channel, stream: bool, num_input_tokens: int = 0) -> Mailbox:
        """A mailbox for a new request; it closes itself after the last event."""
        mailbox = Mailbox(request_id, channel, stream, self._posted.put, self._rest, self._limits, num_input_tokens)
        with self._lock:
            self._open[request_id] = mailbox
            self._streams += stream
        return mailbox

    def discard(self, mailbox: Mailbox) -> None:
        """Forgets a mailbox whose request was not taken, or has ended."""
        with self._lock:
            if self._open.pop(mailbox.request_id, None) is not None:
                self._streams -= mailbox.streams

    def fail_all(self, error: ChatError) -> None:
        """Ends all open requests with an error, when the engine no longer does."""
        with self._lock:
            mailboxes = list(self._open.values())
        for mailbox in mailboxes:
            mailbox.fail(error)

    def is_stuck(self) -> bool:
        """Whether a response has been on its way for so long that Triton will never take it.

        tritonserver 2.51 can lock itself up when a stream is cancelled while a response to it is written; all streams
        then hang, and nothing else shows it.
        """
        oldest = min(list(self._sending.values()), default=now())
        return now() - max(oldest, self._sent) > _STUCK_SECONDS

    def close(self) -> None:
        """Sends what is pending, then stops the threads."""
        self._closing.set()
        self._posted.put(None)
        for thread in (*self._senders, self._watcher):
            thread.join()

    def _rest(self) -> float:
        return rest_seconds(self._streams, self._cores)

    def _send_loop(self) -> None:
        while True:
            mailbox = self._posted.get()
            if mailbox is not None:
                self._send(mailbox)
                continue
            # Closing. What a sender puts back into the line stands behind the end mark, so it goes round once more.
            is_last = self._posted.empty()
            self._posted.put(None)
            if is_last:
                return

    def _send(self, mailbox: Mailbox) -> None:
        event = mailbox.take()
        if event is None:
            mailbox.settle()
            return
        if event.finish_reason is not None:
            self.discard(mailbox)
        self._sending[mailbox.request_id] = now()
        try:
            mailbox.channel.send(event)
        except Exception:  # noqa: BLE001 - whatever it is, this caller is gone and the others are not
            log.warning("request %s: a response could not be sent; it is cancelled", mailbox.request_id)
            self._cancel(mailbox.request_id)
        finally:
            del self._sending[mailbox.request_id]
            self._sent = now()
        mailbox.settle()

    def _watch_loop(self) -> None:
        while not self._closing.wait(_CANCEL_POLL_SECONDS):
            with self._lock:
                mailboxes = list(self._open.values())
            for mailbox in mailboxes:
                mailbox.offer()  # the engine may have nothing more for it for a while, as when it is preempted
                if failure := mailbox.give_up():
                    log.warning("request %s: %s; it is cancelled", mailbox.request_id, failure.sentence)
                if mailbox.failure is not None or _is_gone(mailbox):
                    self._cancel(mailbox.request_id)


def _is_gone(mailbox: Mailbox) -> bool:
    try:
        return mailbox.channel.is_cancelled()
    except Exception:  # noqa: BLE001 - as above
        log.warning("request %s: its caller cannot be asked; it is cancelled", mailbox.request_id)
        return True


def merge(events: Iterable[TokenEvent]) -> TokenEvent:
    """Several events of one request as one: texts joined, counts and end of the last."""
    events = list(events)
    last = events[-1]
    return TokenEvent(
        text="".join(event.text for event in events),
        num_input_tokens=last.num_input_tokens,
        num_output_tokens=last.num_output_tokens,
        num_cached_tokens=last.num_cached_tokens,
        logprobs=tuple(entry for event in events for entry in event.logprobs),
        finish_reason=last.finish_reason,
        error=last.error,
        prompt_tokens=tuple(token for event in events for token in event.prompt_tokens),
        token_ids=tuple(token_id for event in events for token_id in event.token_ids),
        prompt_token_ids=events[0].prompt_token_ids,
        reasoning="".join(event.reasoning for event in events),
        tool_calls=tuple(delta for event in events for delta in event.tool_calls),
        num_reasoning_tokens=last.num_reasoning_tokens,
    )


def _counts(event: TokenEvent) -> TokenEvent:
    """The numbers of an event, which adds nothing to the answer."""
    return TokenEvent(
        "",
        num_input_tokens=event.num_input_tokens,
        num_output_tokens=event.num_output_tokens,
        num_cached_tokens=event.num_cached_tokens,
        num_reasoning_tokens=event.num_reasoning_tokens,
    )


def _size(event: TokenEvent) -> int:
    """About how many bytes it takes on the wire."""
    scored = len(event.logprobs) + sum(len(entry.top) for entry in event.logprobs)
    scored += len(event.prompt_tokens) + sum(len(token.top) for token in event.prompt_tokens)
    entries = 1 + 2 * scored + len(event.token_ids) + len(event.prompt_token_ids) + len(event.tool_calls)
    characters = len(event.text) + len(event.reasoning) + sum(len(delta.arguments) for delta in event.tool_calls)
    return _ENTRY_BYTES * entries + characters


def _is_worth_sending(event: TokenEvent) -> bool:
    return bool(event.text or event.reasoning or event.tool_calls or event.logprobs or event.prompt_tokens)


def _portion(events: list[TokenEvent]) -> int:
    """How many of the events go into one response, at least one: all, if they do not score too much of a prompt."""
    scored = 0
    for count, event in enumerate(events):
        scored += len(event.prompt_tokens)
        if count and event.prompt_tokens and scored > _MAX_SCORED_TOKENS:
            return count
    return len(events)
