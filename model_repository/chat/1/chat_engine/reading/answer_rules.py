"""What is asked of an answer, beside its length: how it is read, and what it must follow."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from chat_engine.answer_format import AnswerFormat
from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError
from chat_engine.reading.call_grammar import CallGrammar, Signature
from chat_engine.reading.chat_parameters import ChatParameters, Tool
from chat_engine.reading.lark import Lark
from chat_engine.reading.prompt_parser import Prompt
from chat_engine.reading.structured import constraint_of, lark
from chat_engine.reading.tool_schemas import as_read
from chat_engine.request import Constraint, Reply, StructuredOutputs


class AnswerRules:
    """Makes them for the requests of one model.

    Args:
        config: limits on requests.
        answer_format: how the model writes its answers to messages, and its fast tokenizer; None: they are text.
    """

    def __init__(self, config: EngineConfig, answer_format: tuple[AnswerFormat, Tokenizer] | None = None) -> None:
        self._config = config
        self._format: AnswerFormat | None = None
        self._calls: CallGrammar | None = None
        if answer_format:
            self._format, tokenizer = answer_format
            self._lark = Lark(tokenizer)
            if self._format.call:
                self._calls = CallGrammar(self._lark, self._format, self._format.call)

    @property
    def may_reason(self) -> bool:
        """Whether answers may have reasoning, which the prompt may have opened or closed."""
        return self._format is not None and (self._format.shipped or self._format.reasoning_tags is not None)

    def of(
        self, outputs: StructuredOutputs | None, chat: ChatParameters, prompt: Prompt
    ) -> tuple[Reply | None, Constraint | None]:
        """How the answer is read (None: as text), and what it must follow. Raises InvalidArgumentError."""
        if outputs is not None and chat.must_call:
            raise InvalidArgumentError(
                f"cannot be combined with the tool_choice {chat.named_tool or chat.tool_choice}: the answer would have "
                "to be both",
                field="structured_outputs",
            )
        tools = chat.usable_tools
        if tools:
            self._check_that_calls_are_known(chat)
        reply = self._reply(chat, prompt)
        if chat.must_call:
            assert self._calls, "checked above"
            grammar = self._calls.answer(_signatures(tools), parallel=chat.parallel_tool_calls, prefix=prompt.begun)
            return reply, Constraint(lark(grammar), "tools")
        if outputs is None:
            return reply, None
        constraint = constraint_of(outputs, self._config)
        if reply is None:
            return None, constraint
        calls = ""
        if tools and self._calls:
            calls = self._calls.calls(_signatures(tools), parallel=chat.parallel_tool_calls)
        grammar = self._lark.behind_reasoning(constraint.grammar, self._format, prompt.begun, instead=calls)
        return reply, Constraint(grammar, constraint.field, content=constraint.grammar)

    def _reply(self, chat: ChatParameters, prompt: Prompt) -> Reply | None:
        if self._format is None or not chat.parse or not prompt.of_messages:
            return None
        tools = chat.usable_tools
        return Reply(
            self._format,
            tuple(as_read(tool.function.name, tool.function.schema_of_arguments) for tool in tools),
            prompt.begun,
            named=chat.named_tool is not None,
            opened=self._opened(tools, chat) if tools and not chat.must_call else None,
            single=not chat.parallel_tool_calls,
            strict=any(tool.function.strict for tool in tools),
        )

    def _opened(self, tools: Sequence[Tool], chat: ChatParameters) -> Constraint | None:
        if self._calls is None:
            return None
        return Constraint(lark(self._calls.opened(_signatures(tools), parallel=chat.parallel_tool_calls)), "tools")

    def _check_that_calls_are_known(self, chat: ChatParameters) -> None:
        """A call that nobody can read, or make the model write, is not to be asked for."""
        if chat.must_call and self._calls is None:
            raise InvalidArgumentError(
                f"{chat.named_tool or chat.tool_choice} is not possible: how this model writes calls is not known; "
                "use auto, or let the operator set answer_format",
                field="tool_choice",
            )


def _signatures(tools: Sequence[Tool]) -> list[Signature]:
    functions = (tool.function for tool in tools)
    return [Signature(each.name, each.schema_of_arguments, strict=bool(each.strict)) for each in functions]
