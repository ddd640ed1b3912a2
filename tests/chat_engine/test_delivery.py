from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_engine.errors import EngineFailedError, RequestCancelledError
from chat_engine.request import Alternative, FinishReason, PromptToken, TokenEvent, TokenLogprobs
from chat_engine.service import delivery as delivery_module
from chat_engine.service.delivery import Delivery, Mailbox, ReaderLimits, merge, rest_seconds
from tests.chat_engine.builders import WAIT, examples


def event(text: str = "", reason: FinishReason | None = None, count: int = 0, **more: object) -> TokenEvent:
    return TokenEvent(
        text, num_input_tokens=3, num_output_tokens=count, num_cached_tokens=1, finish_reason=reason, **more
    )


def scored(*ids: int, **more: object) -> TokenEvent:
    """An event with tokens of the prompt."""
    return event(prompt_tokens=tuple(PromptToken(str(i), b"", i) for i in ids), **more)


def logprob(name: str) -> TokenLogprobs:
    return TokenLogprobs(Alternative(name, name.encode(), -1.0, 0), ())


END = FinishReason.STOP


class FakeChannel:
    """A caller who takes responses only when told to.

    `hold()` makes senders wait in `send`; `wait_until_sending` returns when one does; `let_go` lets all go on.
    """

    def __init__(self) -> None:
        self.sent: list[TokenEvent] = []
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self.fails = False
        self.inside = 0
        self.most_inside = 0
        self._changed = threading.Condition()
        self._held = False

    def send(self, sent: TokenEvent) -> None:
        with self._changed:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._held, WAIT)
            self.inside -= 1
            self.sent.append(sent)
            self._changed.notify_all()
        if sent.finish_reason is not None:
            self.ended.set()
        if self.fails:
            raise ConnectionError("gone")

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    def hold(self) -> None:
        with self._changed:
            self._held = True

    def let_go(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def wait_until_sending(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.inside > 0, WAIT)

    def wait_until_sent(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.sent) >= count, WAIT)

    @property
    def texts(self) -> list[str]:
        return [sent.text for sent in self.sent]


class Cancels:
    """Stands for the engine's `cancel`."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, request_id: str) -> None:
        with self._changed:
            self.ids.append(request_id)
            self._changed.notify_all()

    def wait_for(self, request_id: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self.ids, WAIT)


@pytest.fixture
def cancels() -> Cancels:
    return Cancels()


@pytest.fixture
def make(cancels: Cancels, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Delivery]]:
    monkeypatch.setattr(delivery_module, "_CANCEL_POLL_SECONDS", 0.001)
    made: list[Delivery] = []

    def build(senders: int = 2, limits: ReaderLimits | None = None) -> Delivery:
        made.append(Delivery(cancels, senders, limits))
        return made[-1]

    yield build
    for delivery in made:
        delivery.close()


# Merging.


def test_merged_events_join_texts_and_keep_the_last_counts_and_end() -> None:
    error = RequestCancelledError("x")
    parts = [event("a", count=1, logprobs=(logprob("a"),)), event("b", count=2), event("c", END, 3, error=error)]
    merged = merge(parts)
    assert (merged.text, merged.num_output_tokens, merged.finish_reason, merged.error) == ("abc", 3, END, error)
    assert merged.logprobs == (logprob("a"),)


def test_merged_events_join_token_ids_and_scores() -> None:
    merged = merge([scored(1, 2, prompt_token_ids=(1, 2, 3)), scored(3, token_ids=(4,)), event(token_ids=(5, 6))])
    assert [token.token_id for token in merged.prompt_tokens] == [1, 2, 3]
    assert (merged.token_ids, merged.prompt_token_ids) == ((4, 5, 6), (1, 2, 3))


# Mailboxes, without threads.


def mailbox(stream: bool = True) -> tuple[Mailbox, list[Mailbox]]:
    posted: list[Mailbox] = []
    return Mailbox("r", FakeChannel(), stream, posted.append), posted


def test_a_mailbox_stands_in_line_once_however_much_comes() -> None:
    box, posted = mailbox()
    for letter in "abc":
        box.put(event(letter))
    assert posted == [box]
    taken = box.take()
    assert taken is not None
    assert taken.text == "abc"


def test_an_empty_text_is_not_worth_a_response() -> None:
    box, posted = mailbox()
    box.put(event("", count=1))
    assert posted == []
    box.put(event("x", count=2))
    assert posted == [box]


def test_logprobs_are_worth_a_response_without_text() -> None:
    box, posted = mailbox()
    box.put(event("", logprobs=(logprob("a"),)))
    assert posted == [box]


def test_scores_of_a_prompt_are_worth_a_response_and_ids_alone_are_not() -> None:
    box, posted = mailbox()
    box.put(event(token_ids=(1,)))
    assert posted == []
    box.put(scored(1))
    assert posted == [box]


@pytest.mark.parametrize("stream", [True, False])
def test_scores_of_a_long_prompt_leave_in_several_responses(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(delivery_module, "_MAX_SCORED_TOKENS", 5)
    box, posted = mailbox(stream)
    for part in (scored(0, 1, 2), scored(3, 4), scored(5, 6, 7, 8, 9, 10, 11), scored(12), event("a"), event("b", END)):
        box.put(part)
    responses = []
    while posted:
        posted.pop()
        responses.append(box.take())
        box.settle()
    assert [token.token_id for sent in responses for token in sent.prompt_tokens] == [*range(13)]
    assert [len(sent.prompt_tokens) for sent in responses] == ([5, 7, 1] if stream else [13])
    assert [sent.finish_reason for sent in responses] == [*[None] * (len(responses) - 1), END]
    assert responses[-1].text == "ab"
    assert box.take() is None


def test_without_streaming_only_the_end_is_worth_a_response() -> None:
    box, posted = mailbox(stream=False)
    box.put(event("a"))
    box.put(event("b", logprobs=(logprob("b"),)))
    assert posted == []
    box.put(event("c", END))
    assert posted == [box]
    taken = box.take()
    assert taken is not None
    assert taken.text == "abc"


def test_a_mailbox_is_not_in_line_again_while_its_last_part_is_being_sent() -> None:
    box, posted = mailbox()
    box.put(event("a"))
    box.take()
    box.put(event("b"))
    assert posted == [box], "two senders at once could change the order"
    box.settle()
    assert posted == [box, box]
    box.take()
    box.settle()
    assert posted == [box, box]


@examples(200)
@given(st.lists(st.sampled_from(["put", "take", "settle"]), max_size=30), st.booleans())
def test_nothing_is_lost_doubled_or_left_lying(actions: list[str], stream: bool) -> None:
    box, posted = mailbox(stream)
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGH")
    put = out = ""
    sending = False
    for action in actions:
        if action == "put":
            put += (letter := next(letters))
            box.put(event(letter))
        elif action == "take" and posted and not sending:
            posted.pop()
            taken = box.take()
            out += taken.text if taken else ""
            sending = True
        elif action == "settle" and sending:
            box.settle()
            sending = False
        assert len(posted) + sending <= 1
        assert put.startswith(out)
    if sending:
        box.settle()
    box.put(event("!", END))
    assert len(posted) == 1
    last = box.take()
    assert last is not None
    assert out + last.text == put + "!"


# Delivery.


def test_responses_come_in_order_and_end_once(make: Callable[..., Delivery]) -> None:
    delivery, channel = make(), FakeChannel()
    box = delivery.open("r", channel, stream=True)
    for i in range(500):
        box.put(event(f"{i},", count=i + 1))
    box.put(event("end", END, 501))
    assert channel.ended.wait(WAIT)
    assert "".join(channel.texts) == "".join(f"{i}," for i in range(500)) + "end"
    assert [sent.finish_reason for sent in channel.sent].count(END) == 1
    assert channel.sent[-1].finish_reason is END
    counts = [sent.num_output_tokens for sent in channel.sent]
    assert counts == sorted(counts)


def test_what_comes_while_one_response_is_being_sent_leaves_as_one(make: Callable[..., Delivery]) -> None:
    delivery, channel = make(), FakeChannel()
    box = delivery.open("r", channel, stream=True)
    channel.hold()
    box.put(event("a"))
    channel.wait_until_sending()
    for letter in "bcd":
        box.put(event(letter))
    channel.let_go()
    channel.wait_until_sent(2)
    assert channel.texts == ["a", "bcd"]


def test_a_slow_response_is_not_overtaken_by_the_next(make: Callable[..., Delivery]) -> None:
    """With several senders, the end could reach the caller before what precedes it."""
    delivery, slow, other = make(senders=4), FakeChannel(), FakeChannel()
    slow_box = delivery.open("slow", slow, stream=True)
    other_box = delivery.open("other", other, stream=True)
    slow.hold()
    slow_box.put(event("first"))
    slow.wait_until_sending()
    slow_box.put(event("last", END))
    for _ in range(20):  # the other senders are awake and have had every chance
        other_box.put(event("x"))
    other_box.put(event("", END))
    assert other.ended.wait(WAIT)
    assert slow.most_inside == 1
    slow.let_go()
    assert slow.ended.wait(WAIT)
    assert slow.texts == ["first", "last"]


def test_a_slow_caller_does_not_hold_up_the_others(make: Callable[..., Delivery]) -> None:
    delivery, slow, quick = make(senders=2), FakeChannel(), FakeChannel()
    slow.hold()
    delivery.open("slow", slow, stream=True).put(event("a"))
    slow.wait_until_sending()
    box = delivery.open("quick", quick, stream=True)
    for _ in range(5):
        box.put(event("x"))
    box.put(event("", END))
    assert quick.ended.wait(WAIT)
    slow.let_go()


def test_without_streaming_there_is_one_response(make: Callable[..., Delivery]) -> None:
    delivery, channel = make(), FakeChannel()
    box = delivery.open("r", channel, stream=False)
    for letter in "abc":
        box.put(event(letter, logprobs=(logprob(letter),)))
    box.put(event("d", END, 4))
    assert channel.ended.wait(WAIT)
    assert channel.texts == ["abcd"]
    assert len(channel.sent[0].logprobs) == 3


def test_many_callers_at_once_all_get_theirs(make: Callable[..., Delivery]) -> None:
    delivery = make()
    channels = [FakeChannel() for _ in range(16)]
    boxes = [delivery.open(str(i), channel, stream=i % 2 == 0) for i, channel in enumerate(channels)]

    def feed(box: Mailbox, name: int) -> None:
        for i in range(100):
            box.put(event(f"{name}:{i} "))
        box.put(event("", END))

    feeders = [threading.Thread(target=feed, args=(box, i)) for i, box in enumerate(boxes)]
    for feeder in feeders:
        feeder.start()
    for feeder in feeders:
        feeder.join()
    for i, channel in enumerate(channels):
        assert channel.ended.wait(WAIT)
        assert "".join(channel.texts) == "".join(f"{i}:{n} " for n in range(100))
        assert channel.most_inside == 1


def test_a_caller_who_cannot_be_reached_is_cancelled(make: Callable[..., Delivery], cancels: Cancels) -> None:
    delivery, gone, there = make(), FakeChannel(), FakeChannel()
    gone.fails = True
    box = delivery.open("gone", gone, stream=True)
    box.put(event("a"))
    cancels.wait_for("gone")
    box.put(event("", FinishReason.CANCELLED))
    assert gone.ended.wait(WAIT)
    delivery.open("there", there, stream=True).put(event("b", END))
    assert there.ended.wait(WAIT)
    assert set(cancels.ids) == {"gone"}


def test_a_caller_who_cancels_is_noticed(make: Callable[..., Delivery], cancels: Cancels) -> None:
    delivery, channel, other = make(), FakeChannel(), FakeChannel()
    delivery.open("r", channel, stream=True)
    delivery.open("other", other, stream=True)
    channel.cancelled.set()
    cancels.wait_for("r")
    assert "other" not in cancels.ids


def test_nobody_asks_a_caller_whose_request_has_ended(make: Callable[..., Delivery], cancels: Cancels) -> None:
    delivery, ended, marker = make(), FakeChannel(), FakeChannel()
    delivery.open("ended", ended, stream=True).put(event("", END))
    assert ended.ended.wait(WAIT)
    ended.cancelled.set()
    delivery.open("marker", marker, stream=True)
    marker.cancelled.set()
    cancels.wait_for("marker")
    assert "ended" not in cancels.ids


def test_a_discarded_request_is_not_asked_about(make: Callable[..., Delivery], cancels: Cancels) -> None:
    delivery, channel, marker = make(), FakeChannel(), FakeChannel()
    delivery.discard(delivery.open("r", channel, stream=True))
    channel.cancelled.set()
    delivery.open("marker", marker, stream=True)
    marker.cancelled.set()
    cancels.wait_for("marker")
    assert "r" not in cancels.ids


def test_a_caller_who_cannot_be_asked_does_not_end_the_watch(make: Callable[..., Delivery], cancels: Cancels) -> None:
    class Broken(FakeChannel):
        def is_cancelled(self) -> bool:
            raise RuntimeError("the response sender is gone")

    delivery, marker = make(), FakeChannel()
    delivery.open("broken", Broken(), stream=True)
    delivery.open("marker", marker, stream=True)
    marker.cancelled.set()
    cancels.wait_for("marker")


def test_an_engine_that_is_stuck_leaves_nobody_waiting(make: Callable[..., Delivery]) -> None:
    """Whatever it puts later is not taken, and whoever has ended is not told again."""
    delivery, over, stream, whole = make(), FakeChannel(), FakeChannel(), FakeChannel()
    delivery.open("over", over, stream=True).put(event("a", END))
    assert over.ended.wait(WAIT)
    boxes = delivery.open("stream", stream, stream=True), delivery.open("whole", whole, stream=False)
    boxes[0].put(event("a", count=1))
    stream.wait_until_sent(1)
    error = EngineFailedError("it is stuck")
    delivery.fail_all(error)
    for channel, box in zip((stream, whole), boxes, strict=True):
        assert channel.ended.wait(WAIT)
        assert (channel.sent[-1].finish_reason, channel.sent[-1].error) == (FinishReason.ERROR, error)
        box.put(event("late", END))
    assert stream.sent[-1].num_output_tokens == 1
    delivery.fail_all(error)
    delivery.close()
    assert [len(channel.sent) for channel in (over, stream, whole)] == [1, 2, 1]


@pytest.mark.parametrize("senders", [1, 2, 4])
def test_closing_sends_what_is_pending(make: Callable[..., Delivery], senders: int) -> None:
    delivery, channels = make(senders), [FakeChannel() for _ in range(20)]
    for i, channel in enumerate(channels):
        box = delivery.open(str(i), channel, stream=True)
        box.put(event("a"))
        box.put(event("b", END))
    delivery.close()
    assert ["".join(channel.texts) for channel in channels] == ["ab"] * 20


@pytest.mark.parametrize("senders", [1, 2, 4])
def test_closing_waits_for_what_came_while_a_response_was_being_sent(
    make: Callable[..., Delivery], senders: int
) -> None:
    delivery, channel = make(senders), FakeChannel()
    box = delivery.open("r", channel, stream=True)
    channel.hold()
    box.put(event("a"))
    channel.wait_until_sending()
    box.put(event("b", END))
    closer = threading.Thread(target=delivery.close)
    closer.start()
    assert delivery._closing.wait(WAIT)
    channel.let_go()
    closer.join(WAIT)
    assert not closer.is_alive()
    assert channel.texts == ["a", "b"]


def test_closing_twice_is_harmless(make: Callable[..., Delivery]) -> None:
    delivery = make()
    delivery.close()
    delivery.close()


def test_a_response_that_triton_never_takes_is_noticed(
    make: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(delivery_module, "now", lambda: clock[0])
    delivery, channel = make(), FakeChannel()
    channel.hold()
    delivery.open("r", channel, stream=True).put(event("a"))
    channel.wait_until_sending()
    assert not delivery.is_stuck()
    clock[0] = 31.0
    assert delivery.is_stuck()
    channel.let_go()
    channel.wait_until_sent(1)
    delivery.close()
    assert not delivery.is_stuck()


def test_only_those_who_stream_make_streams_rest(
    make: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(delivery_module, "rest_seconds", lambda streams, cores: asked.append(streams) or 0.0)
    delivery, channel = make(), FakeChannel()
    whole = [delivery.open(f"w{number}", FakeChannel(), stream=False) for number in range(3)]
    first, second = (delivery.open(name, channel, stream=True) for name in ("a", "b"))
    first.put(event("x"))
    channel.wait_until_sent(1)
    delivery.discard(second)
    delivery.discard(second)
    delivery.discard(whole[0])
    first.put(event("y"))
    channel.wait_until_sent(2)
    assert asked == [2, 1]


def test_few_streams_never_rest_and_many_share_what_the_cores_can_send() -> None:
    assert rest_seconds(streams=8, cores=2) == 0
    assert rest_seconds(streams=9, cores=2) > 0
    for streams, cores in [(32, 2), (64, 16), (1000, 64)]:
        rest = rest_seconds(streams, cores)
        assert rest == 0 or streams / rest == pytest.approx(150 * cores)


def test_a_resting_stream_gathers_and_its_end_does_not_wait() -> None:
    line: list[Mailbox] = []
    mailbox = Mailbox("r", FakeChannel(), True, line.append, rest=lambda: 3600.0)

    mailbox.put(event("a"))
    assert line == [mailbox]  # the first token never rests
    assert mailbox.take() == event("a")
    mailbox.settle()
    mailbox.put(event("b"))
    mailbox.put(event("c"))
    assert line == [mailbox]
    mailbox.put(event("d", END))
    assert line == [mailbox, mailbox]
    assert mailbox.take() == event("bcd", END)


def test_the_watcher_offers_what_rested_too_long(
    make: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    rests = [3600.0]
    monkeypatch.setattr(delivery_module, "rest_seconds", lambda streams, cores: rests[0])
    clock = [0.0]
    monkeypatch.setattr(delivery_module, "now", lambda: clock[0])
    channel = FakeChannel()
    mailbox = make().open("r", channel, stream=True)
    mailbox.put(event("a"))
    channel.wait_until_sent(1)
    mailbox.put(event("b"))
    clock[0] = 3601.0
    channel.wait_until_sent(2)
    assert channel.texts == ["a", "b"]


def test_a_stream_whose_tokens_show_nothing_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers end a stream that is silent for long; hidden tokens and markers that are held back are no silence."""
    time = [100.0]
    monkeypatch.setattr(delivery_module, "now", lambda: time[0])
    line: list[Mailbox] = []
    mailboxes = [Mailbox(name, FakeChannel(), stream, line.append) for name, stream in (("s", True), ("w", False))]
    for count in (1, 2, 3):
        for mailbox in mailboxes:
            mailbox.put(event(count=count))
    assert line == []
    time[0] += 5.0
    for mailbox in mailboxes:
        mailbox.offer()
    assert line == mailboxes[:1]
    assert line[0].take() == event(count=3)
    line[0].settle()
    line[0].put(event(count=4))
    assert line == mailboxes[:1]


# Waiting, and readers that are slow.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(delivery_module, "now", lambda: time[0])
    return time


def test_a_stream_that_waits_says_every_five_seconds_that_it_lives(clock: list[float]) -> None:
    line: list[Mailbox] = []
    stream = Mailbox("s", FakeChannel(), True, line.append, num_input_tokens=7)
    whole = Mailbox("w", FakeChannel(), False, line.append, num_input_tokens=7)
    for seconds, posted in ((4.9, 0), (0.1, 1), (4.9, 1), (0.1, 2)):
        clock[0] += seconds
        stream.offer()
        whole.offer()
        assert len(line) == posted
        if seconds < 1:
            assert stream.take() == TokenEvent("", num_input_tokens=7, num_output_tokens=0, num_cached_tokens=0)
            stream.settle()
    assert line == [stream, stream]


def test_a_stream_that_is_put_back_repeats_its_counts_and_nothing_else(clock: list[float]) -> None:
    box, posted = mailbox()
    box.put(event("a", count=5, token_ids=(1, 2), logprobs=(logprob("a"),), num_reasoning_tokens=2))
    box.take()
    box.settle()
    clock[0] += 5
    box.offer()
    assert len(posted) == 2
    assert box.take() == event(count=5, num_reasoning_tokens=2)


def test_a_stream_that_has_ended_is_silent(clock: list[float]) -> None:
    box, posted = mailbox()
    box.put(event("a", END))
    box.take()
    box.settle()
    clock[0] += 60
    box.offer()
    assert len(posted) == 1
    assert box.take() is None


@pytest.mark.parametrize(
    "end",
    [
        event("", FinishReason.CANCELLED, error=RequestCancelledError("the request was cancelled")),
        event("the rest", END),  # the engine was quicker
    ],
)
def test_more_than_the_limit_that_nobody_takes_is_dropped_and_the_end_says_why(
    make: Callable[..., Delivery],
    cancels: Cancels,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    end: TokenEvent,
) -> None:
    monkeypatch.setattr(delivery_module, "_PATIENCE_SECONDS", 0.0)
    delivery = make(2, ReaderLimits(bytes=1000))
    stuck, other = FakeChannel(), FakeChannel()
    box, bystander = delivery.open("slow", stuck, stream=True), delivery.open("quick", other, stream=True)
    stuck.hold()
    box.put(event("a"))
    stuck.wait_until_sending()
    for letter in "bc":
        box.put(event(letter * 500))
    cancels.wait_for("slow")
    box.put(event("lost"))
    box.put(end)
    stuck.let_go()
    assert stuck.ended.wait(WAIT)
    assert stuck.texts == ["a", end.text]
    assert stuck.sent[-1].finish_reason is FinishReason.CANCELLED
    assert "more than 1000 bytes" in str(stuck.sent[-1].error)
    bystander.put(event("x", END))
    assert other.ended.wait(WAIT)
    assert set(cancels.ids) == {"slow"}
    assert [record.message for record in caplog.records if "slow" in record.message] == [
        "request slow: the answer is read too slowly: more than 1000 bytes of it are waiting; it is cancelled"
    ]


def test_an_answer_that_waits_too_long_to_be_taken_is_cancelled(clock: list[float]) -> None:
    box, _ = mailbox()
    box.put(event("a"))
    clock[0] += 60
    assert box.give_up() is None
    clock[0] += 1
    failure = box.give_up()
    assert failure is not None
    assert "waited for 60 seconds" in str(failure)
    assert box.give_up() is None


def test_much_that_comes_at_once_is_not_read_too_slowly(clock: list[float]) -> None:
    line: list[Mailbox] = []
    box = Mailbox("r", FakeChannel(), True, line.append, limits=ReaderLimits(bytes=10))
    box.put(event("a" * 1000))
    clock[0] += 2.0
    assert box.give_up() is None
    clock[0] += 0.1
    assert box.give_up() is not None


def test_an_answer_that_is_complete_or_not_streamed_has_no_limit(clock: list[float]) -> None:
    """It ends by itself, and nobody could have taken a part of it."""
    for stream, reason in ((True, END), (False, None)):
        box = Mailbox("r", FakeChannel(), stream, lambda _: None, limits=ReaderLimits(bytes=10))
        box.put(event("a" * 1000, reason))
        clock[0] += 1000
        assert box.give_up() is None
