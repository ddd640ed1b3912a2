"""When something is dead or stuck, from what can be seen of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from triton_chat_server.supervise.heartbeats import Heartbeat

DEAD_S = 0.6
"""Seen twice: one that ends normally removes its file just before."""
SILENT_S = 6.0
"""A heartbeat comes twice a second, from a thread of its own, and so many seconds without one are a process that is
stopped, or that holds Python's lock for good. With the time to look and to end it, callers wait for less than 10 s."""
COMPLAINT_S = 2.0
"""A process that says it does not work gets this long to tell its callers, and to work again."""
UNANSWERED_S = 5.0
"""Neither its HTTP nor its metrics, which have threads of their own."""
_LONGEST_LOOK_S = 1.0


class Verdicts:
    """Looks again and again, and says what is wrong once that has lasted too long.

    Time counts as it passes for the one who looks: where the whole machine or container was paused, a look that comes
    late counts for one second.
    """

    def __init__(self, silent_s: float = SILENT_S) -> None:
        self._silent_s = silent_s
        self._beats: dict[int, int] = {}
        self._lasting: dict[Hashable, float] = {}
        self._answered = False

    def look(
        self, elapsed: float, heartbeats: Sequence[Heartbeat], is_alive: Callable[[int], bool], answers: bool | None
    ) -> str | None:
        """The sentence, or None while all is well.

        Args:
            elapsed: seconds since the last look.
            heartbeats: of the models' processes.
            is_alive: whether there is a process with the id.
            answers: whether tritonserver answered when it was last asked; None: it is not asked. Counts from the first
                answer on, since a server that loads its models does not answer.
        """
        self._answered |= bool(answers)
        signs: dict[Hashable, tuple[float, str]] = {}
        if answers is False and self._answered:
            signs["server"] = UNANSWERED_S, f"tritonserver has not answered for {UNANSWERED_S:.0f} s"
        for beat in heartbeats:
            who = f"the process of the model {beat.model!r}"
            if not is_alive(beat.pid):
                signs["dead", beat.pid] = DEAD_S, f"{who} is dead"
            elif self._beats.get(beat.pid) == beat.beats:
                signs["silent", beat.pid] = self._silent_s, f"{who} has sent no heartbeat for {self._silent_s:g} s"
            if beat.complaint:
                signs["complaint", beat.pid] = COMPLAINT_S, f"the model {beat.model!r} does not work: {beat.complaint}"
        self._beats = {beat.pid: beat.beats for beat in heartbeats}
        step = min(elapsed, _LONGEST_LOOK_S)
        self._lasting = {sign: self._lasting.get(sign, 0.0) + step for sign in signs}
        return next((words for sign, (limit, words) in signs.items() if self._lasting[sign] >= limit), None)
