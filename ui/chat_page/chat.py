"""One browser session: its conversation, and the answer that is being made for it."""

from __future__ import annotations

from chat_page.conversation import Answer, Conversation, Round, Turn
from chat_page.generation import Generation
from chat_page.markdown import escape
from chat_page.options import Options
from chat_page.settings import PageSettings


class Chat:
    """What the buttons do. Their callbacks run before the page is drawn, so a question waits for its options."""

    def __init__(self, settings: PageSettings) -> None:
        self.conversation = Conversation()
        self.generation: Generation | None = None
        self.models: tuple[str, ...] = ()
        """The names last heard of."""
        self._settings = settings
        self._pending: str | None = None
        self._continues = False

    @property
    def running(self) -> bool:
        return self.generation is not None and not self.generation.look(0)

    def want(self, question: str) -> None:
        """Ask this as soon as the options are known."""
        self._pending = question

    def take_pending(self) -> str | None:
        question, self._pending = self._pending, None
        return question

    def ask(self, question: str, options: Options) -> None:
        """An answer that still runs ends here, with what has come of it."""
        self.stop()
        self.conversation.turns.append(Turn(question))
        self._answer(options)

    def take_continues(self) -> bool:
        continues, self._continues = self._continues, False
        return continues

    def go_on(self, options: Options) -> None:
        """The last question gets another answer to what its calls came to; one that is there goes."""
        self.stop()
        turn = self.conversation.turns.pop()
        self.conversation.turns.append(Turn(turn.question, rounds=turn.rounds))  # the old one may still be written
        self._answer(options)

    def _answer(self, options: Options) -> None:
        """To the last turn."""
        turn = self.conversation.turns[-1]
        if options.problem:
            self.generation = None
            turn.answer = Answer(state="failed", problem=escape(options.problem))
        else:
            messages = self.conversation.messages(options.system)
            self.generation = Generation(self._settings, turn, messages, options)

    def stop(self) -> None:
        if self.generation is not None:
            self.generation.stop()

    def give_results(self, results: tuple[str, ...]) -> None:
        """What the calls of the last answer came to; it goes on as soon as the options are known."""
        turn = self.conversation.turns[-1]
        turn.rounds = (*turn.rounds, Round(turn.answer, results))
        turn.answer = Answer()
        self._continues = True

    def ask_again(self) -> None:
        """The last question gets a new answer; the old one goes, and what calls before it came to stays."""
        if self.conversation.turns[-1].rounds:
            self._continues = True
        else:
            self.want(self.take_back())

    def take_back(self) -> str:
        """Removes the last turn; returns its question."""
        self.stop()
        return self.conversation.turns.pop().question

    def clear(self) -> None:
        self.stop()
        self._continues = False
        self.conversation = Conversation()
        self.generation = None
