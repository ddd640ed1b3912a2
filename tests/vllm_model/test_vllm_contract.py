"""What clients of Triton's vLLM backend send, as `chat` understands it, and what they get."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import vllm_contract
from chat_engine.errors import InvalidArgumentError, UnknownModelError
from chat_engine.request import SamplingParams
from vllm_contract import CHAT_OUTPUTS, RETURNS, WITHOUT_EFFECT, Answer, Asked, read

NOT_REPORTED = ("prompt_logprobs", "return_token_ids")


def asked(parameters: dict[str, object] | None = None, **tensors: object) -> Asked:
    """As the model has it: BYTES and BOOL of shape [1]."""
    arrays = {
        name: np.array([value], np.bool_ if isinstance(value, bool) else np.object_)
        for name, value in {"text_input": b"Once", **tensors}.items()
    }
    return read(arrays, parameters or {})


def sampling(parameters: dict[str, object] | None = None, given: object = None, **tensors: object) -> dict[str, Any]:
    raw = {} if given is None else {"sampling_parameters": json.dumps(given).encode()}
    found = json.loads(asked(parameters, **raw, **tensors).inputs["sampling_parameters"][0, 0])
    assert isinstance(found, dict)
    return found


class TestSwitches:
    def test_what_chat_is_asked_has_its_shape(self) -> None:
        inputs = asked(text_input=b"Once").inputs
        assert {name: (array.shape, array[0, 0]) for name, array in inputs.items()} == {
            "text_input": ((1, 1), b"Once"),
            "sampling_parameters": ((1, 1), b'{"max_tokens": 16}'),
            "stream": ((1, 1), False),
            "exclude_input_in_output": ((1, 1), False),
        }

    @pytest.mark.parametrize(
        ("switches", "stream", "excluded"),
        [
            ({}, False, False),  # one answer begins with the prompt
            ({"stream": False}, False, False),
            ({"stream": False, "exclude_input_in_output": False}, False, False),
            ({"exclude_input_in_output": True}, False, True),
            ({"stream": True}, True, True),  # a stream never has it
            ({"stream": True, "exclude_input_in_output": True}, True, True),
        ],
    )
    def test_the_prompt_in_the_answer(self, switches: dict[str, bool], stream: bool, excluded: bool) -> None:
        for request in (asked(**switches), asked(dict(switches)), asked({k: str(v) for k, v in switches.items()})):
            assert request.stream == stream
            assert bool(request.inputs["stream"]) == stream
            assert bool(request.inputs["exclude_input_in_output"]) == excluded

    def test_a_stream_with_the_prompt_is_refused(self) -> None:
        with pytest.raises(InvalidArgumentError, match="exclude_input_in_output: false is not allowed with stream"):
            asked(stream=True, exclude_input_in_output=False)

    def test_an_input_wins_over_a_parameter(self) -> None:
        assert asked({"stream": False}, stream=True).stream
        assert not asked({"stream": True}, stream=False).stream

    @pytest.mark.parametrize("name", ["stream", "exclude_input_in_output", *RETURNS])
    @pytest.mark.parametrize("value", ["maybe", 2, 0.5, ""])
    def test_what_is_no_switch_is_named(self, name: str, value: object) -> None:
        with pytest.raises(InvalidArgumentError, match=f"^{name}: must be true or false"):
            asked({name: value})

    @pytest.mark.parametrize("switch", RETURNS)
    def test_outputs_are_those_that_are_asked_for(self, switch: str) -> None:
        assert asked(**{switch: True}).outputs == asked({switch: True}).outputs == {RETURNS[switch]}
        assert not asked(**{switch: False}).outputs


class TestSampling:
    def test_numbers_may_be_texts_and_parameters_may_come_twice(self) -> None:
        """The backend's own sample client does both."""
        texts = {"temperature": "0.1", "top_p": "0.95", "max_tokens": "100"}
        assert sampling(dict(texts), texts) == texts

    def test_the_input_wins(self) -> None:
        assert sampling({"max_tokens": 1, "seed": 2}, {"max_tokens": 3}) == {"max_tokens": 3, "seed": 2}

    def test_without_max_tokens_it_is_that_of_vllm(self) -> None:
        assert sampling() == sampling({}, {}) == sampling({"max_tokens": None}) == {"max_tokens": 16}

    def test_the_id_of_a_request_is_no_parameter(self) -> None:
        assert sampling({"id": "42", "seed": 1}) == {"seed": 1, "max_tokens": 16}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 1), ("n", "1"), ("n", 1.0), ("best_of", 1), ("use_beam_search", False), ("use_beam_search", "False"),
            ("early_stopping", False), ("length_penalty", "1.0"), ("bad_words", []), ("detokenize", True),
            ("return_token_ids", False), ("return_token_ids", "false"), ("prompt_logprobs", None), ("lora_name", None),
            ("seed", None), ("whatever", None),
        ],
    )  # fmt: skip
    def test_what_changes_nothing_is_left_out(self, name: str, value: object) -> None:
        assert sampling({}, {name: value}) == sampling({name: value}) == {"max_tokens": 16}

    @pytest.mark.parametrize(
        ("name", "value"),
        [("use_beam_search", True), ("skip_special_tokens", False), ("bad_words", ["x"]), ("nonsense", "[" * 100_000)],
    )
    def test_other_values_are_for_chat_to_judge(self, name: str, value: object) -> None:
        assert sampling({}, {name: value}) == {name: value, "max_tokens": 16}

    @pytest.mark.parametrize(
        ("name", "value", "advice"),
        [
            ("n", 2, "send the request once for each answer"),
            ("n", True, "send the request once for each answer"),
            ("best_of", "3", "send the request once for each answer"),
            ("prompt_logprobs", 0, "ask the model `chat`"),
            ("return_token_ids", "true", "ask the model `chat`"),
        ],
    )
    def test_what_cannot_be_served_is_refused_with_advice(self, name: str, value: object, advice: str) -> None:
        for refused in ({"given": {name: value}}, {"parameters": {name: value}}):
            with pytest.raises(InvalidArgumentError, match=f"^{name}: .*{advice}"):
                sampling(**refused)

    def test_images_are_refused_with_advice(self) -> None:
        with pytest.raises(InvalidArgumentError, match=r"^image: .* leave it out"):
            asked(image=b"aGVsbG8=")

    @pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
    def test_what_is_no_object_is_for_chat_to_refuse(self, raw: bytes) -> None:
        assert asked({"seed": 1}, sampling_parameters=raw).inputs["sampling_parameters"][0, 0] == raw

    def test_the_sum_needs_the_chosen_tokens_alone(self) -> None:
        assert sampling({}, {}, return_cumulative_logprob=True) == {"logprobs": 0, "max_tokens": 16}
        assert sampling({}, {"logprobs": 3}, return_cumulative_logprob=True) == {"logprobs": 3, "max_tokens": 16}

    def test_no_parameter_of_chat_is_kept_from_it(self) -> None:
        assert not WITHOUT_EFFECT.keys() & SamplingParams.model_fields.keys()

    @pytest.mark.parametrize("name", sorted({*SamplingParams.model_fields} - {"max_tokens", *NOT_REPORTED}))
    @pytest.mark.parametrize("value", [1, "1", 0.5, 1e400, "文", True, False, [], {"7": -1}, 2**70])
    def test_chats_own_parameters_reach_it_as_they_are(self, name: str, value: object) -> None:
        assert sampling({}, {name: value}) == {name: value, "max_tokens": 16}


def event(text: str, tokens: int, reason: str = "", logprobs: object = None) -> dict[str, Any]:
    """What `chat` sends."""
    values = text.encode(), reason.encode(), 5, tokens, json.dumps(logprobs).encode() if logprobs else b""
    return dict(zip(CHAT_OUTPUTS, values, strict=True))


def token(token_id: int, logprob: float, *top: dict[str, Any]) -> dict[str, Any]:
    return {"token": f"<{token_id}>", "logprob": logprob, "bytes": [], "token_id": token_id, "top_logprobs": list(top)}


EVENTS = (
    event("one ", 2, logprobs=[token(7, -0.5, token(7, -0.5), token(8, -1.5)), token(9, -2.0, token(8, -0.25))]),
    event("", 3, logprobs=[token(9, -0.125)]),
    event("two", 3, "length"),
)


class TestAnswer:
    def test_text_alone_unless_more_is_asked_for(self) -> None:
        answer = Answer(asked(stream=True))
        assert [list(answer.outputs(event).items()) for event in EVENTS] == [
            [("text_output", [b"one "])], [("text_output", [b""])], [("text_output", [b"two"])],
        ]  # fmt: skip

    def test_counts_are_of_the_response_and_the_sum_so_far(self) -> None:
        answer = Answer(asked(**dict.fromkeys(RETURNS, True)))
        responses = [answer.outputs(event) for event in EVENTS]
        found = {name: [response[name].tolist() for response in responses] for name in RETURNS.values()}
        assert found == {
            "finish_reason": [[b"None"], [b"None"], [b"length"]],
            "cumulative_logprob": [[-2.5], [-2.625], [-2.625]],
            "logprobs": [[b"null"]] * 3,
            "num_input_tokens": [[5]] * 3,
            "num_output_tokens": [[2], [1], [0]],
        }
        assert {name: array.dtype for name, array in responses[0].items()} == {
            "text_output": np.object_,
            "finish_reason": np.object_,
            "cumulative_logprob": np.float32,
            "logprobs": np.object_,
            "num_input_tokens": np.uint32,
            "num_output_tokens": np.uint32,
        }

    def test_logprobs_are_by_token_id(self) -> None:
        answer = Answer(asked(return_logprobs=True, sampling_parameters=b'{"logprobs": 2}'))
        first, second, last = (json.loads(answer.outputs(event)["logprobs"][0]) for event in EVENTS)
        assert first == [
            {
                "7": {"logprob": -0.5, "rank": 1, "decoded_token": "<7>"},
                "8": {"logprob": -1.5, "rank": 2, "decoded_token": "<8>"},
            },
            {
                "9": {"logprob": -2.0, "rank": None, "decoded_token": "<9>"},
                "8": {"logprob": -0.25, "rank": 1, "decoded_token": "<8>"},
            },
        ]
        assert second == [{"9": {"logprob": -0.125, "rank": None, "decoded_token": "<9>"}}]
        assert last == []


class TestAdapters:
    """That backend has the adapter's name among the sampling parameters."""

    @staticmethod
    def adapter(given: object = None, **scalars: object) -> bytes | None:
        tensors = {"text_input": np.array([b"Once"], np.object_)}
        if given is not None:
            tensors["sampling_parameters"] = np.array([json.dumps(given).encode()], np.object_)
        inputs = vllm_contract.read(tensors, scalars).inputs
        assert "lora_name" not in json.loads(inputs["sampling_parameters"][0, 0])
        return inputs["adapter"][0, 0] if "adapter" in inputs else None

    def test_it_becomes_the_input_of_chat(self) -> None:
        assert self.adapter({"lora_name": "alpaca"}) == b"alpaca"
        assert self.adapter(lora_name="alpaca") == b"alpaca"
        assert self.adapter({"lora_name": "alpaca"}, lora_name="bactrian") == b"alpaca"
        assert self.adapter() is self.adapter({"lora_name": None}) is None

    @pytest.mark.parametrize("value", [7, True, ["alpaca"]])
    def test_what_is_no_name_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidArgumentError, match="lora_name: must be the name of an adapter"):
            self.adapter({"lora_name": value})

    def test_errors_have_the_name_that_the_caller_knows(self) -> None:
        unknown = UnknownModelError("there is no adapter 'x'", field="adapter")
        assert str(vllm_contract.in_its_words(unknown)) == "lora_name: there is no adapter 'x'"
        assert type(vllm_contract.in_its_words(unknown)) is UnknownModelError
        other = InvalidArgumentError("empty", field="text_input")
        assert vllm_contract.in_its_words(other) is other
