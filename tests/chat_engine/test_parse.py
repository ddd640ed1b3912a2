from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_engine.errors import ContextLengthError, InvalidArgumentError, UnsupportedModelError
from chat_engine.reading.answer_rules import AnswerRules
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.request_parser import PROMPTS, RequestParser, WireRequest
from chat_engine.request import MAX_COUNT, MAX_SEED, ChatRequest, SamplingParams
from chat_engine.text.answer_formats import known_formats
from tests.chat_engine.builders import byte_level_tokenizer, examples, make_config

CONTEXT = 60
VOCAB = 300
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_parser(template: str | None = TEMPLATE, defaults: dict[str, object] | None = None, **settings: object):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer())
    tokenizer.chat_template = template
    prompts = PromptEncoder(tokenizer)
    return RequestParser(prompts, make_config(**settings), CONTEXT, VOCAB, defaults or {})


PARSER = make_parser()


def parse(parser: RequestParser = PARSER, **fields: object) -> ChatRequest:
    if not fields.keys() & set(PROMPTS):
        fields["text_input"] = b"hello"
    sampling = fields.get("sampling_parameters")
    if isinstance(sampling, dict):
        fields["sampling_parameters"] = json.dumps(sampling).encode()
    return parser.parse(WireRequest(id="r", **fields))


def refused(parser: RequestParser = PARSER, **fields: object) -> str:
    """The message, after what must be true of any."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse(parser, **fields)
    return decent(caught.value)


def decent(error: InvalidArgumentError, given: str = "") -> str:
    """What the caller has `given` may be shown, whatever it looks like."""
    message = str(error)
    assert message
    assert len(message) < 1000
    assert "\n" not in message
    message.encode("utf-8")  # it goes out on the wire
    for leak in ("Traceback", "/home", '.py"', "site-packages", "pydantic.dev", "://"):
        assert leak not in message or leak in given.replace("\\", "")
    return message


def messages(*turns: tuple[str, str]) -> bytes:
    return json.dumps([{"role": role, "content": content} for role, content in turns]).encode()


# What is accepted.


def test_messages_go_through_the_chat_template() -> None:
    request = parse(messages=messages(("system", "x"), ("user", "hi")))
    tokenizer = byte_level_tokenizer()
    assert (
        tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False) == "[system]x</s>[user]hi</s>[assistant]"
    )
    assert request.prompt_ids.count(2) == 2


def test_a_text_input_is_taken_as_it_is() -> None:
    assert parse(text_input="hé".encode()).prompt_ids == tuple(byte_level_tokenizer().encode("hé").ids)


def test_token_ids_are_taken_as_they_are() -> None:
    request = parse(prompt_token_ids=b" [0, 2,\n299]", exclude_input_in_output=False)
    assert request.prompt_ids == (0, 2, 299)


def test_the_echo_of_token_ids_is_their_text() -> None:
    ids = [1, *byte_level_tokenizer().encode("hello 中文").ids]
    raw = json.dumps(ids).encode()
    assert parse(prompt_token_ids=raw, exclude_input_in_output=False).echo == "<s>hello 中文"
    assert parse(prompt_token_ids=raw).echo == ""


@pytest.mark.parametrize("where", ["sampling_parameters", "parameters"])
@pytest.mark.parametrize(("value", "begun"), [(False, False), (True, True), (None, True)])
def test_the_template_begins_the_answer_unless_told_not_to(where: str, value: bool | None, begun: bool) -> None:
    request = parse(
        messages=messages(("user", "hi")), **{where: {"add_generation_prompt": value}}, exclude_input_in_output=False
    )
    assert request.echo == "[user]hi</s>" + "[assistant]" * begun


def test_what_is_not_given_has_its_default() -> None:
    request = parse()
    assert request.stream
    assert request.echo == ""
    assert request.sampling.temperature == 1.0
    assert request.max_tokens == CONTEXT - len(request.prompt_ids)


def test_the_models_own_defaults_give_way_to_the_caller() -> None:
    parser = make_parser(defaults={"temperature": 0.6, "top_p": 0.9})
    sampling = parse(parser, sampling_parameters={"top_p": 0.5}).sampling
    assert (sampling.temperature, sampling.top_p) == (0.6, 0.5)


def test_null_means_not_given() -> None:
    parser = make_parser(defaults={"temperature": 0.6})
    assert parse(parser, sampling_parameters={"temperature": None, "seed": None}).sampling.temperature == 0.6


def test_default_max_tokens_is_cut_to_the_context() -> None:
    assert parse(make_parser(default_max_tokens=7)).max_tokens == 7
    assert parse(make_parser(default_max_tokens=1000)).max_tokens < CONTEXT


def test_scalar_parameters_and_json_mix() -> None:
    sampling = parse(sampling_parameters={"top_k": 3}, parameters={"max_tokens": 4, "stop": "x"}).sampling
    assert (sampling.top_k, sampling.max_tokens, sampling.stop) == (3, 4, ("x",))


@pytest.mark.parametrize("where", ["tensor", "parameter"])
def test_switches_come_as_a_tensor_or_a_parameter(where: str) -> None:
    switches = {"stream": False, "exclude_input_in_output": False}
    request = parse(parameters=switches) if where == "parameter" else parse(**switches)
    assert not request.stream
    assert request.echo == "hello"


def test_everything_at_its_limit_is_accepted() -> None:
    limits = make_config()
    given_ = {
        "max_tokens": 2, "min_tokens": 2, "temperature": 2, "top_p": 1, "top_k": MAX_COUNT, "min_p": 1,
        "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 10,
        "logit_bias": {"0": -100, str(VOCAB - 1): 100},
        "stop": ["x" * limits.max_stop_length] * limits.max_stop_strings,
        "stop_token_ids": [0, VOCAB - 1], "ignore_eos": True, "seed": MAX_SEED, "logprobs": limits.max_logprobs,
        "prompt_logprobs": limits.max_logprobs, "return_token_ids": True,
    }  # fmt: skip
    request = parse(sampling_parameters=given_)
    assert request.sampling.logit_bias == {0: -100.0, VOCAB - 1: 100.0}
    assert request.seed == MAX_SEED


def test_a_seed_is_drawn_where_none_is_given() -> None:
    assert len({parse().seed for _ in range(20)}) == 20


# Which prompt.


def test_one_of_messages_and_text_input_is_required() -> None:
    message = refused(messages=None, text_input=None)
    assert message == "exactly one of messages, text_input, prompt_token_ids is required, none given"


@pytest.mark.parametrize("names", [PROMPTS[:2], PROMPTS[1:], PROMPTS[::2], PROMPTS])
def test_several_prompts_together_are_refused(names: tuple[str, ...]) -> None:
    message = refused(**dict.fromkeys(names, b"x"))
    assert message.endswith(f"is required, {' and '.join(names)} given")


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["text_input", "prompt_token_ids"])
def test_only_messages_take_a_generation_prompt(name: str, value: bool) -> None:
    message = refused(**{name: b"[1]"}, sampling_parameters={"add_generation_prompt": value})
    assert message == f"add_generation_prompt: only for messages (got {value})"


@pytest.mark.parametrize("value", [0, 1, "true", [], {}])
def test_a_generation_prompt_is_wanted_or_not(value: object) -> None:
    message = refused(messages=messages(("user", "x")), sampling_parameters={"add_generation_prompt": value})
    assert message == f"add_generation_prompt: must be true or false (got {value!r})"


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"hello", "prompt_token_ids: not JSON"),
        (b"[1", "prompt_token_ids: not JSON"),
        (b"1", "prompt_token_ids: must be a JSON array of token ids (got 1)"),
        (b"{}", "prompt_token_ids: must be a JSON array of token ids (got {})"),
        (b'"1"', "prompt_token_ids: must be a JSON array of token ids (got '1')"),
        (b"null", "prompt_token_ids: must be a JSON array of token ids (got None)"),
        (b"[]", "prompt_token_ids: the prompt has no tokens"),
        (b"[1, true]", "prompt_token_ids[1]: must be a token id, an integer (got True)"),
        (b"[1.0]", "prompt_token_ids[0]: must be a token id, an integer (got 1.0)"),
        (b"[null]", "prompt_token_ids[0]: must be a token id, an integer (got None)"),
        (b'["1"]', "prompt_token_ids[0]: must be a token id, an integer (got '1')"),
        (b"[[1]]", "prompt_token_ids[0]: must be a token id, an integer (got [1])"),
        (b"[NaN]", "prompt_token_ids[0]: must be a token id, an integer (got nan)"),
        (b"[1, -1]", f"prompt_token_ids: token id -1 is not in the vocabulary; allowed are 0 to {VOCAB - 1}"),
        (b"[300]", f"prompt_token_ids: token id 300 is not in the vocabulary; allowed are 0 to {VOCAB - 1}"),
        (b"\xff", "prompt_token_ids: not valid UTF-8"),
        (b"[1]\0", "prompt_token_ids: holds a NUL character"),
    ],
)
def test_bad_token_ids_are_refused_by_their_place(raw: bytes, complaint: str) -> None:
    assert refused(prompt_token_ids=raw).startswith(complaint)


@pytest.mark.parametrize("name", PROMPTS)
def test_an_empty_prompt_is_refused(name: str) -> None:
    assert refused(**{name: b""}).startswith(f"{name}: empty")


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"hello", "messages: not JSON"),
        (b"[", "messages: not JSON"),
        (b"{}", "messages: "),
        (b'"x"', "messages: "),
        (b"null", "messages: "),
        (b"[]", "messages: the list is empty"),
        (b"[1]", "messages[0]: "),
        (b'[{"role": "user"}]', "messages[0].content: "),
        (b'[{"content": "x"}]', "messages[0].role: "),
        (b'[{"role": "robot", "content": "x"}]', "'robot'"),
        (b'[{"role": "User", "content": "x"}]', "'User'"),
        (b'[{"role": "user", "content": 3}]', "messages[0].content: "),
        (b'[{"role": "user", "content": null}]', "messages[0].content: "),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', "messages[0].content[0].type: only parts of the"),
        (b'[{"role": "user", "content": "x", "name": 3}]', "messages[0].name: "),
        (b'[{"role": "user", "content": "x", "name": "a\\u0000"}]', "messages[0].name: "),
        (b'[{"role": "user", "content": "ok"}, {"role": "user"}]', "messages[1].content: "),
        (b'[{"role": "user", "content": NaN}]', "messages[0].content: "),
    ],
)
def test_bad_messages_are_refused_by_their_place(raw: bytes, complaint: str) -> None:
    assert complaint in refused(messages=raw)


def test_the_refusal_of_a_wrong_role_names_the_allowed_ones() -> None:
    message = refused(messages=messages(("robot", "x")))
    assert all(role in message for role in ("system", "user", "assistant"))


def test_a_refusal_by_the_chat_template_is_passed_on() -> None:
    assert "system must come first" in refused(messages=messages(("user", "x"), ("system", "y")))


def test_messages_need_a_chat_template() -> None:
    assert "no chat template" in refused(make_parser(template=None), messages=messages(("user", "x")))


def test_a_slow_tokenizer_cannot_be_served() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModelError, match="fast tokenizer"):
        PromptEncoder(Slow())


# Texts.


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"text_input": b"a\0b"}, "text_input: holds a NUL character at position 1"),
        ({"messages": messages(("user", "a\0b"))}, "messages[0].content: holds a NUL character at position 1"),
        ({"text_input": b"a\xff"}, "text_input: not valid UTF-8 at byte 1"),
        ({"messages": b"\xe4\xb8"}, "messages: not valid UTF-8"),
        ({"text_input": b"\xed\xa0\x80"}, "text_input: not valid UTF-8"),
        ({"sampling_parameters": b'{"seed": \xff}'}, "sampling_parameters: not valid UTF-8"),
        ({"messages": messages(("user", "\ud83d"))}, "messages[0].content: "),
        ({"sampling_parameters": {"stop": "\ud83d"}}, "stop"),
        ({"sampling_parameters": {"\ud83d": 1}}, "sampling_parameters: must be a valid string"),
        ({"sampling_parameters": {"logit_bias": {"\ud83d": 1}}}, "logit_bias: keys must be token ids"),
        ({"messages": b'[{"role": "user", "content": "x", "\\ud83d": 1}]'}, "messages[0]"),
        ({"messages": b'[{"role": "\\ud83d", "content": "x"}]'}, "messages[0].role"),
    ],
)
def test_texts_that_are_no_text_are_refused(fields: dict[str, object], complaint: str) -> None:
    assert complaint in refused(**fields)


def test_a_surrogate_pair_in_json_is_one_character() -> None:
    assert parse(messages=b'[{"role": "user", "content": "\\ud83d\\ude00"}]').prompt_ids


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_of_too_many_bytes_is_refused(name: str) -> None:
    assert "101 bytes given; at most 100 are allowed" in refused(
        make_parser(max_prompt_bytes=100), **{name: b" " * 101}
    )


def test_too_many_sampling_parameters_are_refused() -> None:
    raw = b'{"seed": 1' + b" " * 200 + b"}"
    assert "at most 100 are allowed" in refused(make_parser(max_prompt_bytes=100), sampling_parameters=raw)


def test_too_many_messages_are_refused() -> None:
    many = messages(*[("user", "x")] * 4)
    assert "messages: 4 messages given; at most 3 are allowed" in refused(make_parser(max_messages=3), messages=many)


# Sampling parameters.


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "sampling_parameters: not JSON"),
        (b"{", "sampling_parameters: not JSON"),
        (b"[]", "sampling_parameters: must be a JSON object (got [])"),
        (b"7", "sampling_parameters: must be a JSON object (got 7)"),
        (b"null", "sampling_parameters: must be a JSON object (got None)"),
        (b'{"a": 1} x', "sampling_parameters: not JSON"),
    ],
)
def test_sampling_parameters_must_be_an_object(raw: bytes, complaint: str) -> None:
    assert complaint in refused(sampling_parameters=raw)


@pytest.mark.parametrize("value", [1, None, "x", [], {}])
@pytest.mark.parametrize("where", ["sampling_parameters", "parameters"])
def test_an_unknown_parameter_is_refused_by_name(where: str, value: object) -> None:
    message = refused(**{where: {"temprature": value}})
    assert message.startswith("temprature: unknown parameter")
    assert "temperature" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", True), ("max_tokens", "5x"), ("max_tokens", 5.5),
        ("max_tokens", [5]),
        ("min_tokens", -1), ("min_tokens", False),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", True), ("temperature", []),
        ("temperature", "hot"), ("temperature", ""), ("temperature", "nan"),
        ("top_p", 1.1), ("top_p", -1), ("top_p", False),
        ("top_k", -2), ("top_k", 1.5), ("top_k", True), ("top_k", "all"), ("top_k", MAX_COUNT + 1),
        ("min_p", -0.1), ("min_p", 1.1),
        ("presence_penalty", 2.1), ("presence_penalty", -2.1), ("presence_penalty", "1 2"),
        ("frequency_penalty", 3), ("frequency_penalty", True),
        ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", 10.5),
        ("logit_bias", []), ("logit_bias", "x"), ("logit_bias", 3),
        ("stop", 3), ("stop", ""), ("stop", [""]), ("stop", ["x", 3]), ("stop", {"a": 1}), ("stop", True),
        ("stop_token_ids", 3), ("stop_token_ids", ["3"]), ("stop_token_ids", [True]), ("stop_token_ids", [1.0]),
        ("ignore_eos", 1), ("ignore_eos", "yes"),
        ("seed", -2), ("seed", MAX_SEED + 1), ("seed", 1.5), ("seed", True), ("seed", "one"),
        ("logprobs", -1), ("logprobs", True), ("logprobs", 5.5),
        ("prompt_logprobs", -1), ("prompt_logprobs", True), ("return_token_ids", 1), ("return_token_ids", "yes"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name_and_value(name: str, value: object) -> None:
    message = refused(sampling_parameters={name: value})
    assert message.split(":")[0].split("[")[0] == name
    assert repr(value) in message or repr(value[-1]) in message


@pytest.mark.parametrize("name", ["max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs"])
def test_a_whole_number_may_be_written_as_a_fraction(name: str) -> None:
    for where in ({"sampling_parameters": b'{"%s": 3e0}' % name.encode()}, {"parameters": {name: 3.0}}):
        value = getattr(parse(**where).sampling, name)
        assert (value, type(value)) == (3, int)
    for number in (-3.0, 1e300):
        assert refused(sampling_parameters={name: number}).startswith(f"{name}: ")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"]
)
def test_numbers_that_are_none_are_refused(name: str, number: bytes) -> None:
    assert refused(sampling_parameters=b'{"%s": %s}' % (name.encode(), number)).startswith(f"{name}: ")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"101", b'"x"', b"null", b"true", b"[]"])
def test_a_bad_bias_is_refused(number: bytes) -> None:
    assert refused(sampling_parameters=b'{"logit_bias": {"5": %s}}' % number).startswith("logit_bias.5: ")


@pytest.mark.parametrize("key", ["x", "", "-1", "1.0", " 1", "1 ", "٣", "1" * 30, "0x1", "1_0"])
def test_a_bias_key_that_is_no_token_id_is_refused(key: str) -> None:
    assert refused(sampling_parameters={"logit_bias": {key: 1}}).startswith("logit_bias: ")


@pytest.mark.parametrize("token", [VOCAB, VOCAB + 1, 10**17])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    for name, value in (("logit_bias", {str(token): 1}), ("stop_token_ids", [token])):
        message = refused(sampling_parameters={name: value})
        assert message == f"{name}: token id {token} is not in the vocabulary; allowed are 0 to {VOCAB - 1}"


def test_a_negative_stop_token_is_refused() -> None:
    assert "token id -1 is not in the vocabulary" in refused(sampling_parameters={"stop_token_ids": [-1]})


@pytest.mark.parametrize(
    ("settings", "sampling", "complaint"),
    [
        ({"max_logprobs": 5}, {"logprobs": 6}, "logprobs: 6 given; at most 5 are allowed"),
        ({"max_logprobs": 5}, {"prompt_logprobs": 6}, "prompt_logprobs: 6 given; at most 5 are allowed"),
        ({"max_stop_strings": 2}, {"stop": ["a", "b", "c"]}, "stop: 3 strings given; at most 2 are allowed"),
        ({"max_stop_length": 4}, {"stop": "abcde"}, "stop: 5 characters in one string given; at most 4 are allowed"),
        ({"max_logit_bias": 1}, {"logit_bias": {"1": 1, "2": 1}}, "logit_bias: 2 entries given; at most 1 are allowed"),
        ({"max_logit_bias": 1}, {"stop_token_ids": [1, 2]}, "stop_token_ids: 2 entries given; at most 1 are allowed"),
    ],
)
def test_limits_of_the_configuration(settings: dict[str, object], sampling: dict[str, object], complaint: str) -> None:
    assert refused(make_parser(**settings), sampling_parameters=sampling) == complaint


def test_an_input_wins_over_a_request_parameter_of_the_same_name() -> None:
    """As in Triton's vLLM backend, whose own client sends both."""
    assert parse(sampling_parameters={"top_k": 3}, parameters={"top_k": 4, "seed": 7}).sampling.top_k == 3
    assert parse(sampling_parameters={"top_k": 3}, parameters={"top_k": 4, "seed": 7}).seed == 7
    for name, attribute in (("stream", True), ("exclude_input_in_output", True)):
        request = parse(**{name: False}, parameters={name: attribute})
        assert (request.stream, bool(request.echo)) == (name != "stream", name != "stream")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.1", 0.1), ("temperature", "1e-1", 0.1), ("top_p", " 0.95 ", 0.95), ("max_tokens", "7", 7),
        ("max_tokens", "7.0", 7), ("top_k", "-1", -1), ("ignore_eos", "true", True), ("ignore_eos", "False", False),
        ("seed", "12", 12), ("presence_penalty", "-0.5", -0.5), ("logprobs", "2", 2), ("min_tokens", "2", 2),
    ],
)  # fmt: skip
def test_numbers_may_be_texts(name: str, text: str, value: object) -> None:
    for where in ("sampling_parameters", "parameters"):
        assert getattr(parse(**{where: {name: text}}).sampling, name) == value


def test_log_probabilities_of_a_long_prompt_are_for_streams() -> None:
    parser, asked = make_parser(max_unstreamed_scores=30), {"prompt_logprobs": 2}
    assert parse(parser, text_input=b"x" * 10, stream=False, sampling_parameters=asked)
    assert parse(parser, text_input=b"x" * 11, sampling_parameters=asked)
    message = refused(parser, text_input=b"x" * 11, stream=False, sampling_parameters=asked)
    assert message.startswith(
        "prompt_logprobs: 33 log-probabilities in one response; at most 30 are allowed without str"
    )


def test_a_seed_of_minus_1_is_none() -> None:
    assert parse(sampling_parameters={"seed": -1}).sampling.seed is None
    assert parse(parameters={"seed": "-1"}).sampling.seed is None


def test_tritons_id_of_a_request_is_no_parameter() -> None:
    assert parse(parameters={"id": "42", "seed": 3}).seed == 3


@pytest.mark.parametrize("name", ["stream", "exclude_input_in_output"])
def test_a_switch_is_true_or_false(name: str) -> None:
    assert refused(parameters={name: 1}) == f"{name}: must be true or false (got 1)"
    assert refused(parameters={name: "yes"}).startswith(f"{name}: must be true or false")


# The context.


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(
        ContextLengthError,
        match=f"the prompt has {CONTEXT} tokens; this model's maximum context length is {CONTEXT} tokens,",
    ):
        parse(text_input=b"x" * CONTEXT)
    assert parse(text_input=b"x" * (CONTEXT - 1)).max_tokens == 1


def test_no_answer_is_wanted_only_where_the_prompt_is() -> None:
    assert "prompt_logprobs" in refused(sampling_parameters={"max_tokens": 0, "logprobs": 1})
    assert parse(sampling_parameters={"max_tokens": 0, "prompt_logprobs": 0}).max_tokens == 0
    assert parse(sampling_parameters={"max_tokens": 0}, exclude_input_in_output=False).max_tokens == 0


def test_a_prompt_without_an_answer_may_fill_the_context() -> None:
    alone = {"max_tokens": 0, "prompt_logprobs": 0}
    assert len(parse(text_input=b"x" * CONTEXT, sampling_parameters=alone).prompt_ids) == CONTEXT
    with pytest.raises(ContextLengthError):
        parse(text_input=b"x" * (CONTEXT + 1), sampling_parameters=alone)


def test_token_ids_that_fill_the_context_are_refused() -> None:
    with pytest.raises(
        ContextLengthError,
        match=f"the prompt has {CONTEXT} tokens; this model's maximum context length is {CONTEXT} tokens,",
    ):
        parse(prompt_token_ids=json.dumps([1] * CONTEXT).encode())
    assert parse(prompt_token_ids=json.dumps([1] * (CONTEXT - 1)).encode()).max_tokens == 1


def test_max_tokens_beyond_the_context_is_refused() -> None:
    with pytest.raises(
        ContextLengthError, match=r"max_tokens: 51 .* maximum context length is 60 tokens, so at most 50 are left"
    ):
        parse(text_input=b"x" * 10, sampling_parameters={"max_tokens": 51})
    assert parse(text_input=b"x" * 10, sampling_parameters={"max_tokens": 50}).max_tokens == 50


def test_more_min_tokens_than_max_tokens_are_refused() -> None:
    assert refused(sampling_parameters={"min_tokens": 6, "max_tokens": 5}).startswith("min_tokens: 6 is more")


# Whatever comes.


@pytest.mark.parametrize("depth", [200, 900, *range(940, 1000, 3), 2000, 100_000])
@pytest.mark.parametrize(
    "around",
    [
        lambda deep: {"sampling_parameters": b'{"stop": %s}' % deep},
        lambda deep: {"sampling_parameters": b'{"unknown": %s}' % deep},
        lambda deep: {"sampling_parameters": deep},
        lambda deep: {"messages": deep},
        lambda deep: {"prompt_token_ids": deep},
        lambda deep: {"prompt_token_ids": b"[1, %s]" % deep},
        lambda deep: {"messages": b'[{"role": "user", "content": %s}]' % deep},
    ],
    ids=["stop", "unknown", "all", "messages", "ids", "id", "content"],
)
def test_deep_nesting_is_refused_at_any_depth(around: Callable[[bytes], dict[str, bytes]], depth: int) -> None:
    refused(**around(b"[" * depth + b"]" * depth))
    refused(**around(b'{"a":' * depth + b"1" + b"}" * depth))


@pytest.mark.parametrize("digits", [20, 400, 4300, 4301, 100_000])
def test_huge_numbers_are_refused(digits: int) -> None:
    number = b"9" * digits
    for name in (b"max_tokens", b"seed", b"top_k", b"temperature", b"stop", b"unknown"):
        refused(sampling_parameters=b'{"%s": %s}' % (name, number))
    refused(sampling_parameters=b'{"stop_token_ids": [%s]}' % number)
    refused(prompt_token_ids=b"[%s]" % number)
    refused(sampling_parameters=b'{"logit_bias": {"1": %s}}' % number)


def test_long_names_and_values_are_cut_in_messages() -> None:
    refused(sampling_parameters={"x" * 100_000: 1})
    refused(sampling_parameters={"temperature": "x" * 100_000})
    refused(parameters={"x" * 100_000: "y" * 100_000})
    refused(messages=json.dumps([{"role": "user", "content": "x", "y" * 100_000: 1}]).encode())
    refused(messages=messages(("r" * 100_000, "x")))


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.text("\ud800\udc00\0a", max_size=3),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)


def survives(**fields: object) -> None:
    try:
        request = parse(**fields)
    except InvalidArgumentError as error:
        decent(error, repr(fields))
    else:
        assert 1 <= request.max_tokens <= CONTEXT - len(request.prompt_ids)
        assert 0 <= request.seed <= MAX_SEED


@examples(200)
@given(raw=st.binary(max_size=40), name=st.sampled_from([*PROMPTS, "sampling_parameters"]))
def test_any_bytes_are_parsed_or_refused(raw: bytes, name: str) -> None:
    survives(**{name: raw})


@examples(300)
@given(value=JSON_VALUES, name=st.sampled_from(["messages", "prompt_token_ids", "sampling_parameters"]))
def test_any_json_is_parsed_or_refused(value: object, name: str) -> None:
    survives(**{name: json.dumps(value).encode()})


@examples(400)
@given(data=st.data())
def test_any_parameters_are_parsed_or_refused(data: st.DataObject) -> None:
    names = st.sampled_from([*SamplingParams.model_fields, "add_generation_prompt", "stream", "unknown"])
    survives(sampling_parameters=data.draw(st.dictionaries(names, JSON_VALUES, max_size=3)))


@examples(200)
@given(
    turns=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "x"]), "content": JSON_VALUES},
        ),
        max_size=4,
    )
)
def test_any_messages_are_parsed_or_refused(turns: list[dict[str, object]]) -> None:
    survives(messages=json.dumps(turns).encode())


@examples(200)
@given(
    parameters=st.dictionaries(
        st.one_of(st.sampled_from(["max_tokens", "stop", "stream", "seed", "temperature"]), st.text(max_size=4)),
        st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5)),
        max_size=3,
    )
)
def test_any_scalar_parameters_are_parsed_or_refused(parameters: dict[str, object]) -> None:
    survives(parameters=parameters)


@pytest.mark.parametrize("said", ["hi", "k", "think", "n", "<think>", "a</think>b", ""])
def test_what_the_template_has_written_of_an_answer_does_not_depend_on_the_question(said: str) -> None:
    template = TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}"
    prompts = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), chat_template=template))
    rules = AnswerRules(make_config(), (known_formats()["think"], prompts.backend))
    parser = RequestParser(prompts, make_config(), CONTEXT, VOCAB, {}, answers=rules)

    def prefix(*messages: dict[str, str], **options: bool) -> str:
        raw = json.dumps(messages).encode()
        reply = parse(parser, messages=raw, chat_parameters=json.dumps(options).encode()).reply
        assert reply is not None
        return reply.prefix

    question = {"role": "user", "content": said}
    assert prefix(question) == "[assistant]<think>"
    assert prefix(question, add_generation_prompt=False) == ""
    answer = {"role": "assistant", "content": "<think>Hm"}
    assert prefix(question, answer, continue_final_message=True) == "<think>Hm"


def test_answers_to_messages_are_read_by_the_format() -> None:
    """With what the template has written behind the last message; other prompts have text for an answer."""
    prompts = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), chat_template=TEMPLATE))
    think = known_formats()["think"]
    parser = RequestParser(
        prompts, make_config(), CONTEXT, VOCAB, {}, answers=AnswerRules(make_config(), (think, prompts.backend))
    )
    said = b'[{"role": "user", "content": " <think> hey "}]'
    reply = parse(parser, messages=said).reply
    assert reply is not None
    assert reply.format is think
    assert reply.prefix == "[assistant]"
    assert parse(parser, text_input=b"<think>").reply is None
    assert parse(messages=said).reply is None
