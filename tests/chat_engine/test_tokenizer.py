from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from chat_engine import tokenizer
from chat_engine.config import CONFIG_VARIABLE, MODEL_VARIABLE
from chat_engine.errors import ConfigError, InvalidArgumentError, UnknownModelError
from chat_engine.tokenizer import ChatTokenizer, TokenizerRequest, Tokenizers, Tokens, checkpoint_name
from tests.chat_engine.builders import byte_level_tokenizer, make_config

VOCAB = 300
CONTEXT = 60
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
HELLO = json.dumps([{"role": "user", "content": "hi 中"}]).encode()


def save_checkpoint(folder: Path, context: int = CONTEXT) -> Path:
    """All of a checkpoint but its weights."""
    LlamaConfig(vocab_size=VOCAB, max_position_embeddings=context).save_pretrained(folder)
    made = PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def chat(checkpoint: Path) -> ChatTokenizer:
    return ChatTokenizer(make_config(model=str(checkpoint), max_prompt_bytes=100))


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(byte_level_tokenizer().encode(text).ids)


def refused(chat: ChatTokenizer, **fields: object) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        chat.tokens(TokenizerRequest(**fields))
    return str(caught.value)


class TestOneTokenizer:
    def test_a_text(self, chat: ChatTokenizer) -> None:
        assert chat.tokens(TokenizerRequest(text_input="hé".encode())) == Tokens(ids_of("hé"), "hé", CONTEXT)

    def test_messages(self, chat: ChatTokenizer) -> None:
        text = "[user]hi 中</s>[a]"
        assert chat.tokens(TokenizerRequest(messages=HELLO)) == Tokens(ids_of(text), text, CONTEXT)

    def test_messages_without_the_beginning_of_an_answer(self, chat: ChatTokenizer) -> None:
        request = TokenizerRequest(messages=HELLO, parameters={"add_generation_prompt": False})
        assert chat.tokens(request).text == "[user]hi 中</s>"

    def test_a_conversation_with_tools_and_variables(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path)
        (tmp_path / "chat_template.jinja").write_text(
            "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }};{% endfor %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
        )
        chat = ChatTokenizer(make_config(model=str(tmp_path)))
        tool = {"type": "function", "function": {"name": "weather", "description": "now"}}
        parameters = json.dumps({"tools": [tool], "chat_template_kwargs": {"mood": "!"}}).encode()
        asked = TokenizerRequest(messages=HELLO, chat_parameters=parameters)
        assert chat.tokens(asked) == Tokens(ids_of("weather: now;hi 中!"), "weather: now;hi 中!", CONTEXT)
        assert refused(chat, text_input=b"x", chat_parameters=parameters).startswith("tools: only for messages")
        info = chat.tokens(TokenizerRequest(parameters={"return_info": True})).info
        assert info["template"] == {"kwargs": ["mood"], "tools": True, "tool_calls": False}

    def test_an_option_given_in_both_places(self, chat: ChatTokenizer) -> None:
        either = {"chat_parameters": b'{"add_generation_prompt": false}', "messages": HELLO}
        assert chat.tokens(TokenizerRequest(**either)).text == "[user]hi 中</s>"
        assert refused(chat, **either, parameters={"add_generation_prompt": True}).startswith("add_generation_prompt: ")

    def test_token_ids(self, chat: ChatTokenizer) -> None:
        ids = (1, *ids_of("hi 中"))
        assert chat.tokens(TokenizerRequest(token_ids=json.dumps(ids).encode())) == Tokens(ids, "<s>hi 中", CONTEXT)

    def test_nothing_is_a_text_of_no_tokens(self, chat: ChatTokenizer) -> None:
        for fields in ({"text_input": b""}, {"token_ids": b"[]"}):
            assert chat.tokens(TokenizerRequest(**fields)) == Tokens((), "", CONTEXT)

    def test_more_than_the_context_is_counted(self, chat: ChatTokenizer) -> None:
        assert len(chat.tokens(TokenizerRequest(text_input=b"x" * 100)).ids) == 100

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({}, "exactly one of messages, text_input, token_ids is required, none given"),
            (
                {"text_input": b"a", "token_ids": b"[1]"},
                "exactly one of messages, text_input, token_ids is required, text_input and token_ids given",
            ),
            ({"messages": b"[]"}, "messages: the list is empty; at least one message is required"),
            ({"messages": b'[{"role": "robot", "content": ""}]'}, "messages[0].role: "),
            ({"text_input": b"a\0"}, "text_input: holds a NUL character at position 1"),
            ({"text_input": b"\xff"}, "text_input: not valid UTF-8 at byte 0"),
            ({"text_input": b"x" * 101}, "text_input: 101 bytes given; at most 100 are allowed"),
            ({"token_ids": b"x"}, "token_ids: not JSON"),
            ({"token_ids": b"[true]"}, "token_ids[0]: must be a token id, an integer (got True)"),
            ({"token_ids": b"[300]"}, "token_ids: token id 300 is not in the vocabulary; allowed are 0 to 299"),
            ({"text_input": b"a", "parameters": {"add_generation_prompt": True}}, "add_generation_prompt: only for"),
            ({"token_ids": b"[]", "parameters": {"add_special_tokens": True}}, "add_special_tokens: only for messages"),
            (
                {"text_input": b"a", "parameters": {"add_special_tokens": 1}},
                "add_special_tokens: must be true or false",
            ),
            (
                {"text_input": b"a", "parameters": {"return_token_strs": "x"}},
                "return_token_strs: must be",
            ),
            (
                {"text_input": b"a", "parameters": {"return_info": True}},
                "return_info: cannot be combined with other inputs; leave out text",
            ),
            (
                {"chat_parameters": b"{}", "parameters": {"return_info": True}},
                "return_info: cannot be combined with other inputs; leave out chat_parameters",
            ),
            (
                {"parameters": {"return_info": True, "add_special_tokens": False}},
                "return_info: cannot be combined with other inputs; leave out add_special_tokens",
            ),
            ({"parameters": {"return_info": False}}, "exactly one of messages, text_input, token_ids is required"),
            (
                {"text_input": b"a", "parameters": {"max_tokens": 1}},
                "max_tokens: unknown parameter (value 1); allowed are add_generation_prompt, continue_final_message, ",
            ),
        ],
    )
    def test_bad_input(self, chat: ChatTokenizer, fields: dict[str, object], complaint: str) -> None:
        assert refused(chat, **fields).startswith(complaint)

    def test_the_names_of_the_tokens(self, chat: ChatTokenizer) -> None:
        found = chat.tokens(TokenizerRequest(text_input=b" hi", parameters={"return_token_strs": True}))
        assert found.token_strs == tuple(byte_level_tokenizer().encode(" hi").tokens)
        assert chat.tokens(TokenizerRequest(text_input=b" hi")).token_strs is None

    def test_an_id_that_the_tokenizer_does_not_have_has_no_name(self, chat: ChatTokenizer) -> None:
        beyond = json.dumps([VOCAB - 1, 1]).encode()
        found = chat.tokens(TokenizerRequest(token_ids=beyond, parameters={"return_token_strs": True}))
        assert found.token_strs == ("", "<s>")

    def test_tritons_own_field_of_a_request_says_nothing(self, chat: ChatTokenizer) -> None:
        asked = TokenizerRequest(text_input=b"hi", parameters={"id": "mine"})
        assert chat.tokens(asked) == chat.tokens(TokenizerRequest(text_input=b"hi"))

    def test_what_the_checkpoint_says(self, chat: ChatTokenizer, checkpoint: Path) -> None:
        found = chat.tokens(TokenizerRequest(parameters={"return_info": True}))
        assert (found.ids, found.text, found.max_model_len) == ((), "", CONTEXT)
        assert found.info is not None
        assert found.info["root"] == checkpoint.name
        config = found.info["config"]
        assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<s>", "</s>", None)
        assert (config["chat_template"], "model_max_length" in config) == (TEMPLATE, False)
        assert config["added_tokens_decoder"]["1"]["content"] == "<s>"
        text = json.dumps(found.info)
        assert str(checkpoint.parent) not in text
        assert "/tmp" not in text

    def test_special_tokens(self, checkpoint: Path, tmp_path: Path) -> None:
        """By default a text gets what the tokenizer begins texts with, and a rendered conversation does not."""
        save_checkpoint(tmp_path)
        settings = json.loads((tmp_path / "tokenizer.json").read_text())
        begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        settings["post_processor"] = {
            "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text], "special_tokens": special,
        }  # fmt: skip
        (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
        chat = ChatTokenizer(make_config(model=str(tmp_path)))

        def begins(parameters: dict[str, object], **fields: bytes) -> bool:
            return chat.tokens(TokenizerRequest(**fields, parameters=parameters)).ids[:1] == (1,)

        for fields, default in (({"text_input": b"a"}, True), ({"messages": HELLO}, False)):
            assert begins({}, **fields) == default
            assert begins({"add_special_tokens": True}, **fields)
            assert not begins({"add_special_tokens": False}, **fields)


class TestTheNameOfACheckpoint:
    def test_a_hubs_id(self) -> None:
        assert checkpoint_name("org/model-7b") == "org/model-7b"

    @pytest.mark.parametrize(
        ("folder", "name"),
        [
            ("models/mine", "mine"),
            ("hub/models--org--a-b--c/snapshots/0123abcd", "org/a-b--c"),
            ("hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ],
    )
    def test_a_folder(self, tmp_path: Path, folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / folder)
        assert checkpoint_name(str(tmp_path / folder)) == name
        assert checkpoint_name(f"{tmp_path / folder}/") == name
        assert checkpoint_name(str(tmp_path / "link")) == "link"
        monkeypatch.chdir(tmp_path / folder)
        assert checkpoint_name(".") == name


class TestSeveralChatModels:
    @pytest.fixture
    def repository(self, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Two chat models, each with settings of its own, and something else."""
        monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
        monkeypatch.delenv(MODEL_VARIABLE, raising=False)
        for name, limit in (("chat", 10), ("other", 20)):
            (tmp_path / name / "1" / "chat_engine").mkdir(parents=True)
            settings = {"model": str(checkpoint), "max_model_len": limit}
            (tmp_path / name / "1" / "engine.json").write_text(json.dumps(settings))
        (tmp_path / "embeddings" / "1").mkdir(parents=True)
        return tmp_path

    @staticmethod
    def limit(tokenizers: Tokenizers, name: bytes | None) -> int:
        return tokenizers.find(name).tokens(TokenizerRequest(text_input=b"x")).max_model_len

    def test_the_name_picks_the_settings(self, repository: Path) -> None:
        tokenizers = Tokenizers(repository)
        assert tokenizers.models() == ["chat", "other"]
        assert [self.limit(tokenizers, name) for name in (None, b"chat", b"other")] == [10, 10, 20]

    def test_the_environment_names_a_folder_of_settings(
        self, repository: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = repository / "settings"
        folder.mkdir()
        (folder / "other.json").write_text(json.dumps({"model": str(checkpoint), "max_model_len": 30}))
        monkeypatch.setenv(CONFIG_VARIABLE, str(folder))
        assert self.limit(Tokenizers(repository), b"other") == 30
        with pytest.raises(ConfigError):
            Tokenizers(repository).find(b"chat")

    def test_the_environment_replaces_the_checkpoint_of_chat_alone(
        self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("chat", "other"):
            (repository / name / "1" / "engine.json").write_text(json.dumps({"model": str(repository / "first")}))
        save_checkpoint(repository / "first", context=40)
        monkeypatch.setenv(MODEL_VARIABLE, str(save_checkpoint(repository / "second", context=50)))
        tokenizers = Tokenizers(repository)
        assert [self.limit(tokenizers, name) for name in (b"chat", b"other")] == [50, 40]

    @pytest.mark.parametrize("name", [b"", b"nope", b"embeddings", b".", b"../chat", b"chat/", b"x" * 1000])
    def test_an_unknown_name_is_refused_and_the_known_ones_are_named(self, repository: Path, name: bytes) -> None:
        with pytest.raises(UnknownModelError) as caught:
            Tokenizers(repository).find(name)
        message = str(caught.value)
        assert message.startswith(f"model: no chat model has the name '{name.decode()[:70]}")
        assert message.endswith("there are chat, other")
        assert len(message) < 200
        assert str(repository) not in message

    def test_a_name_that_is_no_text_is_refused(self, repository: Path) -> None:
        with pytest.raises(InvalidArgumentError, match="model: not valid UTF-8"):
            Tokenizers(repository).find(b"\xff")

    def test_what_was_used_last_is_kept(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokenizer, "_KEPT", 1)
        tokenizers = Tokenizers(repository)
        first = tokenizers.find(b"chat")
        assert tokenizers.find(b"chat") is first
        tokenizers.find(b"other")
        assert tokenizers.find(b"chat") is not first
