"""The prompt of a request, which arrives as messages, as text or as token ids, becomes token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, field_name
from chat_engine.reading.chat_parameters import NOTHING, ChatParameters
from chat_engine.reading.checks import at_most, check_text, check_token_id, decode, read_json, show
from chat_engine.reading.messages import Message, read_messages
from chat_engine.reading.prompt_encoder import PromptEncoder, Rendered


@dataclass(frozen=True)
class Prompt:
    """A prompt for the model.

    Attributes:
        text: what its ids were made of, and None where they came as ids.
        of_messages: whether a chat template has written it.
        begun: what that has written of the answer already, where that was asked for.
    """

    ids: tuple[int, ...]
    text: str | None
    of_messages: bool = False
    begun: str = ""


class PromptParser:
    """Parses and checks prompts for one model.

    Args:
        encoder: the model's tokenizer and chat template.
        config: limits on prompts.
        vocab_size: number of token ids.
        ids_name: what the input for token ids is called.
    """

    def __init__(self, encoder: PromptEncoder, config: EngineConfig, vocab_size: int, ids_name: str) -> None:
        self._encoder = encoder
        self._config = config
        self._vocab_size = vocab_size
        self._ids_name = ids_name

    def parse(
        self,
        messages: bytes | None,
        text_input: bytes | None,
        token_ids: bytes | None,
        chat: ChatParameters = NOTHING,
        *,
        add_special_tokens: bool | None = None,
        wants_beginning: bool = False,
    ) -> Prompt:
        """Exactly one of three, and what goes with it; None is an option's default.

        With `wants_beginning`, the prompt says what the template has written of the answer.

        Raises InvalidArgumentError.
        """
        given = {"messages": messages, "text_input": text_input, self._ids_name: token_ids}
        _exactly_one(given)
        if messages is None:
            chat.check_not_given()
        if token_ids is not None:
            if add_special_tokens is not None:
                raise InvalidArgumentError(
                    f"only for messages and text_input (got {add_special_tokens})", field="add_special_tokens"
                )
            return Prompt(self._token_ids(token_ids), None)
        if messages is not None:
            turns = self._messages(messages)
            rendered = self._rendered(turns, chat, add_special_tokens=bool(add_special_tokens))
            begun = self._beginning(turns, chat, rendered.text) if wants_beginning else ""
            return self._known("messages", Prompt(rendered.ids, rendered.text, of_messages=True, begun=begun))
        assert text_input is not None
        text = self._text("text_input", text_input)
        ids = self._encoder.encode(text, add_special_tokens=add_special_tokens is not False)
        return self._known("text_input", Prompt(ids, text))

    def _beginning(self, messages: Sequence[Message], chat: ChatParameters, text: str) -> str:
        if chat.add_generation_prompt is False and not chat.continue_final_message:
            return ""
        return self._encoder.beginning(
            messages, text, **_given(chat), continue_final_message=bool(chat.continue_final_message)
        )

    def _rendered(self, messages: Sequence[Message], chat: ChatParameters, *, add_special_tokens: bool) -> Rendered:
        if chat.add_generation_prompt and chat.continue_final_message:
            raise InvalidArgumentError(
                "cannot be combined with add_generation_prompt: true", field="continue_final_message"
            )
        if chat.continue_final_message and messages[-1].calls:
            raise InvalidArgumentError(
                "the last message calls tools, so what comes next is what they return", field="continue_final_message"
            )
        return self._encoder.render(
            messages,
            **_given(chat),
            add_generation_prompt=chat.add_generation_prompt is not False and not chat.continue_final_message,
            continue_final_message=bool(chat.continue_final_message),
            add_special_tokens=add_special_tokens,
        )

    def text_of(self, prompt: Prompt) -> str:
        """The prompt as text: what it was made of, or what its ids say."""
        return self._encoder.decode(prompt.ids) if prompt.text is None else prompt.text

    def echo(self, prompt: Prompt) -> str:
        """The same, to be followed by an answer."""
        return self._encoder.echo(prompt.ids) if prompt.text is None else prompt.text

    def _known(self, name: str, prompt: Prompt) -> Prompt:
        """Raises InvalidArgumentError for a token of the tokenizer that the model has no embedding for."""
        beyond = max(prompt.ids, default=0)
        if beyond >= self._vocab_size:
            raise InvalidArgumentError(
                f"the model has no embedding for the token {show(self._encoder.token(beyond))} in it "
                f"(id {beyond}); remove it",
                field=name,
            )
        return prompt

    def _messages(self, raw: bytes) -> list[Message]:
        parsed = read_json("messages", self._text("messages", raw))
        if not isinstance(parsed, list):
            raise InvalidArgumentError(f"must be a valid list (got {show(parsed)})", field="messages")
        if not parsed:
            raise InvalidArgumentError("the list is empty; at least one message is required", field="messages")
        at_most("messages", len(parsed), self._config.max_messages, "messages")
        return read_messages(parsed)

    def _token_ids(self, raw: bytes) -> tuple[int, ...]:
        name = self._ids_name
        parsed = read_json(name, self._text(name, raw))
        if not isinstance(parsed, list):
            raise InvalidArgumentError(f"must be a JSON array of token ids (got {show(parsed)})", field=name)
        for index, token_id in enumerate(parsed):
            if type(token_id) is not int:  # True is an int, too
                raise InvalidArgumentError(
                    f"must be a token id, an integer (got {show(token_id)})", field=field_name(name, index)
                )
            check_token_id(name, token_id, self._vocab_size)
        return tuple(parsed)

    def _text(self, name: str, raw: bytes) -> str:
        at_most(name, len(raw), self._config.max_prompt_bytes, "bytes")
        text = decode(name, raw)
        check_text(name, text)
        return text


def _given(chat: ChatParameters) -> dict[str, Any]:
    """What the template gets beside the messages."""
    return {"tools": [tool.for_template() for tool in chat.shown_tools], "kwargs": chat.chat_template_kwargs}


def _exactly_one(prompts: dict[str, bytes | None]) -> None:
    given = [name for name, value in prompts.items() if value is not None]
    if len(given) != 1:
        raise InvalidArgumentError(
            f"exactly one of {', '.join(prompts)} is required, {' and '.join(given) or 'none'} given"
        )
