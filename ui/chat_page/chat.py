"""One browser session: its conversation, and the answer that is being made for it."""

from __future__ import annotations

from chat_page.conversation import Conversation, Turn
from chat_page.generation import Generation
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
        turn = Turn(question)
        self.conversation.turns.append(turn)
        messages = self.conversation.messages(options.system)
        self.generation = Generation(self._settings, turn, messages, options)

    def stop(self) -> None:
        if self.generation is not None:
            self.generation.stop()

    def ask_again(self) -> None:
        """The last question gets a new answer; the old one goes."""
        self.want(self.take_back())

    def take_back(self) -> str:
        """Removes the last turn; returns its question."""
        self.stop()
        return self.conversation.turns.pop().question

    def clear(self) -> None:
        self.stop()
        self.conversation = Conversation()
        self.generation = None
