"""The nouns of the client: what is asked, how to sample, what comes back. Plain data; nothing here imports gRPC."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypedDict

from triton_chat.errors import InvalidRequestError

Message = Mapping[str, object]
"""`{"role": "user", "content": "Hello"}`, as in the OpenAI API."""

Messages = str | Sequence[Message]
"""A conversation; a plain string is one message of the user."""


def conversation(messages: Messages) -> Sequence[Message]:
    """The messages, one by one."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


Tool = Mapping[str, object]
"""A function of the OpenAI API: `{"type": "function", "function": {"name": ..., "parameters": <JSON schema>}}`."""
ToolChoice = str | Mapping[str, object]
"""`none`, `auto`, `required`, or `{"type": "function", "function": {"name": ...}}`."""


def function_of(tool: Tool) -> Mapping[str, object]:
    """What a tool says of its function; empty for one of another shape, which the server judges."""
    function = tool.get("function")
    return function if isinstance(function, Mapping) else {}


def failure(sentence: str) -> str:
    """The content of a message about a call that came to nothing."""
    return json.dumps({"error": sentence}, ensure_ascii=False)


Stop = str | Sequence[str]
TokenIds = Sequence[int]
LogitBias = Mapping[int, float] | Mapping[str, float]
"""Token ids, also as text, to what is added to their logits."""

StructuredOutputs = Mapping[str, object]
"""Exactly one of `json`, `regex`, `choice` and `grammar`, to what it is."""

HELP = "help"
METAVAR = "metavar"


def parameter(text: str, metavar: str | None = None) -> Any:
    """A field of `SamplingParams`.

    Args:
        text: what `--help` and the gateway's schema say of it.
        metavar: what `--help` calls its value, where the type does not say enough.
    """
    return field(default=None, metadata={HELP: text, METAVAR: metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens. None leaves a setting to the server; its names are those of the OpenAI API and of vLLM.

    The one definition on this side of the wire: the flags of the command line and the fields of the gateway's requests
    are made from it. What a value may be, the server decides.
    """

    max_tokens: int | None = parameter("Longest answer, in tokens.")
    min_tokens: int | None = parameter("Shortest answer, in tokens.")
    temperature: float | None = parameter("0 always takes the likeliest token.")
    top_p: float | None = parameter(
        "Sample from the likeliest tokens of this total probability; 0 takes the likeliest alone."
    )
    top_k: int | None = parameter("Sample from the K likeliest tokens; 0 and -1 mean all.")
    min_p: float | None = parameter("Drop tokens less likely than this part of the likeliest.")
    presence_penalty: float | None = parameter("Against tokens that have occurred.")
    frequency_penalty: float | None = parameter("Against tokens, by how often they occurred.")
    repetition_penalty: float | None = parameter("Above 1: against tokens of prompt and answer.")
    logit_bias: LogitBias | None = parameter("Favour or avoid token ids, by what is added to their logits.", "ID=VALUE")
    stop: Stop | None = parameter("End the answer before this text.")
    stop_token_ids: TokenIds | None = parameter("End the answer at this token id.")
    ignore_eos: bool | None = parameter("Continue past the model's end token.")
    seed: int | None = parameter("The same seed gives the same answer.")
    logprobs: int | None = parameter("Log probabilities, with N alternatives per token; 0: the chosen alone.", "N")
    prompt_logprobs: int | None = parameter("The same for the tokens of the prompt.", "N")
    return_token_ids: bool | None = parameter("Report the ids of the prompt and of the answer.")
    skip_special_tokens: bool | None = parameter("Leave special tokens out of the text, which is the default.")
    structured_outputs: StructuredOutputs | None = parameter(
        "What the answer must be: JSON with exactly one of json (a schema, or true), regex, choice and grammar.",
        "JSON",
    )

    def to_dict(self) -> dict[str, Any]:
        """Only what is set, ready for JSON."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: object) -> object:
    """As JSON has it: keys are texts, and any other sequence is a list."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments, for type checkers; a test holds the two together."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: LogitBias | None
    stop: Stop | None
    stop_token_ids: TokenIds | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    return_token_ids: bool | None
    skip_special_tokens: bool | None
    structured_outputs: StructuredOutputs | None


class ChatOptions(TypedDict, total=False):
    """Keyword arguments about the messages of a request; a raw prompt takes none of them."""

    add_generation_prompt: bool | None
    """False: the chat template does not begin the assistant's turn."""
    continue_final_message: bool | None
    """True: the answer continues the last message."""
    tools: Sequence[Tool] | None
    """Functions that the model may call."""
    tool_choice: ToolChoice | None
    """`none`, `auto`, `required`, or a function by its name."""
    parallel_tool_calls: bool | None
    """False: at most one call in an answer."""
    chat_template_kwargs: Mapping[str, object] | None
    """What the chat template is given beside the conversation, such as `enable_thinking`."""
    parse: bool | None
    """False: reasoning and calls stay in the text, as the model writes them."""


class CallOptions(SamplingOptions, ChatOptions, total=False):
    """Keyword arguments of `stream` and `generate`."""

    prompt: str | None
    """A raw prompt instead of messages; no chat template is applied."""
    prompt_token_ids: Sequence[int] | None
    """A prompt as token ids, taken as they are."""
    model: str
    adapter: str | None
    """A LoRA adapter of the model, by its name on the server; None for the model itself."""
    sampling: SamplingParams | None
    """A base that single keyword arguments override."""
    exclude_input_in_output: bool
    """False: the prompt is part of the first text."""
    priority: int | None
    """Triton's priority level; 1 is the highest."""
    request_id: str | None
    timeout: float | None
    """Seconds for the whole request."""
    idle_timeout: float | None
    """Seconds between two tokens."""
    headers: Mapping[str, str] | None
    """gRPC metadata of this call, such as `traceparent`; wins over the client's own of the same name."""


CHAT_PARAMETERS = tuple(ChatOptions.__annotations__)
"""The names of `ChatOptions`, which are those of the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One conversation, or one raw prompt as text or token ids, and how to answer it."""

    messages: Messages | None = None
    prompt: str | None = None
    prompt_token_ids: Sequence[int] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Sequence[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    parse: bool | None = None
    adapter: str | None = None
    sampling: SamplingParams = SamplingParams()
    stream: bool = True
    exclude_input_in_output: bool = True

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.messages, self.prompt, self.prompt_token_ids)) != 1:
            raise InvalidRequestError("give exactly one of messages, prompt and prompt_token_ids")
        for name in CHAT_PARAMETERS:
            if getattr(self, name) is not None and self.messages is None:
                raise InvalidRequestError("only for messages; a raw prompt is taken as it is", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A `ChatRequest` and how to send it."""

    request: ChatRequest
    model: str = "chat"
    request_id: str = ""
    priority: int | None = None
    timeout: float | None = None
    idle_timeout: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Messages | None, options: CallOptions) -> Call:
        """Sort the keyword arguments of a call.

        Raises:
            TypeError: an unknown keyword.
            InvalidRequestError: not exactly one of messages and the two kinds of prompt.
        """
        rest: dict[str, Any] = dict(options)
        base = rest.pop("sampling", None) or SamplingParams()
        overrides = {field.name: rest.pop(field.name) for field in fields(SamplingParams) if field.name in rest}
        request = ChatRequest(
            messages=messages,
            prompt=rest.pop("prompt", None),
            prompt_token_ids=rest.pop("prompt_token_ids", None),
            **{name: rest.pop(name, None) for name in CHAT_PARAMETERS},
            adapter=rest.pop("adapter", None),
            sampling=replace(base, **overrides),
            exclude_input_in_output=rest.pop("exclude_input_in_output", True),
        )
        rest["request_id"] = rest.get("request_id") or ""
        rest["headers"] = rest.get("headers") or {}
        return cls(request=request, **rest)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token of the answer, in the shape of OpenAI's `logprobs.content`."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptAlternative(TopLogprob):
    token_id: int


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """One token of the prompt, given those before it."""

    token: str
    logprob: float | None
    """None for the first token, which has none before it."""
    bytes: tuple[int, ...] | None
    token_id: int
    rank: int | None = None
    """1 for the most probable token of the vocabulary; None for the first."""
    top_logprobs: tuple[PromptAlternative, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call: the first of each `index` has id and name, the next characters of its arguments follow."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants. `arguments` is the text of a JSON object, cut where the answer was cut."""

    id: str
    name: str
    arguments: str

    @property
    def values(self) -> dict[str, Any] | None:
        """The arguments by name; None where they are no JSON object: the answer was cut, or the model wrote no JSON."""
        try:
            values = json.loads(self.arguments)
        except (ValueError, RecursionError):
            return None
        return values if isinstance(values, dict) else None

    def to_dict(self) -> dict[str, Any]:
        """As in an assistant's message. Arguments for which a server would refuse the conversation are left out."""
        arguments = self.arguments if _is_sendable(self.values) else "{}"
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}

    def result(self, content: str) -> dict[str, Any]:
        """The message that tells the model what the call came to; characters that no server takes are replaced."""
        sendable = content.encode(errors="replace").decode().replace("\0", "\ufffd")
        return {"role": "tool", "tool_call_id": self.id, "content": sendable}


def _is_sendable(values: object) -> bool:
    """Whether a server takes these arguments in a conversation."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return False
    return values is not None and "\\u0000" not in text


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """One response of a stream. The token counts are cumulative."""

    text: str
    finish_reason: str = ""
    """Empty until the last event, then `stop`, `length` or `tool_calls`."""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    """The next tokens of the prompt; all of them come before the answer's first token."""
    token_ids: tuple[int, ...] = ()
    """The answer's next tokens, its end token too; with `return_token_ids`."""
    prompt_token_ids: tuple[int, ...] = ()
    """In the first event; with `return_token_ids`."""
    reasoning: str = ""
    """What the model thinks before it answers."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    num_reasoning_tokens: int = 0
    """Of `num_output_tokens`; cumulative."""

    @property
    def is_waiting(self) -> bool:
        """Whether it says only that the request lives and waits: nothing of the answer has been made yet."""
        made = self.num_output_tokens or self.text or self.reasoning or self.tool_calls or self.prompt_logprobs
        return not (made or self.finish_reason)

    def joined(self, later: ChatEvent) -> ChatEvent:
        """As one event with the next of the same answer."""
        return replace(
            later,
            text=self.text + later.text,
            logprobs=self.logprobs + later.logprobs,
            prompt_logprobs=self.prompt_logprobs + later.prompt_logprobs,
            token_ids=self.token_ids + later.token_ids,
            prompt_token_ids=self.prompt_token_ids + later.prompt_token_ids,
            reasoning=self.reasoning + later.reasoning,
            tool_calls=self.tool_calls + later.tool_calls,
        )


_RARE = (
    "logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids", "reasoning", "tool_calls", "num_reasoning_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A whole answer."""

    text: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    num_reasoning_tokens: int = 0
    ttft_s: float | None = None
    """Seconds from sending to the first token, also of reasoning or a call; None where nothing was streamed."""
    duration_s: float = 0.0
    tokens_per_s: float | None = None
    """Output tokens per second after those that came first; None where all came at once."""

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the next message of its conversation, in OpenAI's shape.

        It has the calls that are to be answered, and no others.
        """
        calls = [call.to_dict() for call in self.calls_to_answer]
        message: dict[str, Any] = {"role": "assistant", "content": self.text if self.text or not calls else None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    @property
    def calls_to_answer(self) -> tuple[ToolCall, ...]:
        """The calls that wait for their results; none where the answer was cut, because some may be missing.

        One whose arguments are no JSON object is among them: `triton_chat.tools.call` tells the model so.
        """
        return self.tool_calls if self.finish_reason in ("tool_calls", "stop") else ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; without what few answers have where there is none of it."""
        document = asdict(self)
        for name in _RARE:
            if not document[name]:
                del document[name]
        return document


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text and its token ids, as the tokenizer of a chat model has them."""

    token_ids: tuple[int, ...]
    text: str
    """For messages: the prompt that the chat template makes of them."""
    max_model_len: int
    """How many tokens the model's context holds, prompt and answer together."""
    token_strs: tuple[str, ...] = ()
    """The tokenizer's own name of each token; only where asked for."""


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What the checkpoint of a chat model says about its texts."""

    root: str
    """The checkpoint: its id on a hub, or the name of its folder."""
    max_model_len: int
    config: Mapping[str, Any]
    """As in its `tokenizer_config.json`: special tokens, chat template and the like; no paths."""
    template_kwargs: tuple[str, ...] = ()
    """What `chat_template_kwargs` may have: the variables that its chat template reads."""
    shows_tools: bool | None = None
    """Whether the chat template shows tools to the model; None where the server does not say."""
    shows_tool_calls: bool | None = None
    """Whether it takes messages with calls of tools and their results; None where the server does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits in seconds. The first token may take longer than the others, because it includes the server's queue."""

    connect: float = 5.0
    first_token: float = 300.0
    idle: float = 60.0
    total: float | None = None
    control: float = 10.0
    """For health, metadata, the model list and the tokenizer."""
    batch: float = 600.0
    """For `generate_batch`, where nothing arrives before everything does."""


ModelKind = Literal["chat", "chat_unary", "embeddings", "tokenizer", "other"]
"""What a model can be asked, told by its tensors and not by its name."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A LoRA adapter of a chat model."""

    name: str
    root: str
    """Where it is from: its id on a hub, or the name of its folder."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    name: str
    version: str
    state: str
    """Triton's word: READY, UNAVAILABLE, LOADING or UNLOADING; empty for a model it never loaded."""
    reason: str
    ready: bool
    kind: ModelKind = "other"
    """As when it was last loaded; `other` also for a model that this client has never seen loaded."""
    adapters: tuple[AdapterInfo, ...] = ()
    """Of a chat model, by name; the model `tokenizer` tells of them."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    name: str
    version: str
    extensions: tuple[str, ...]
    live: bool
    ready: bool
