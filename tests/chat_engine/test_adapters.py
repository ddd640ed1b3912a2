"""Adapters before any engine has them: in the settings, in requests, and their files. Nothing here needs vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from chat_engine.config import EngineConfig, load_config, parse_config
from chat_engine.errors import ConfigError, InvalidArgumentError, UnknownModelError
from chat_engine.reading.adapter_names import read_adapter
from chat_engine.tokenizer import TokenizerRequest, Tokenizers
from chat_engine.vllm import adapter_files
from chat_engine.vllm.adapter_files import BaseWeights, check_base, find_adapter, write_zeros
from chat_engine.vllm.arguments import vllm_arguments
from tests.chat_engine.lora import MODULES, RANK, TINY, make_adapter, write_adapter
from tests.chat_engine.test_parse import make_parser, parse

ADAPTERS = {"sql": "/somewhere/sql", "org/poet": "org/poet"}
KNOWN = {"model", "dtype", "enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank"}


def settings(adapters: object = ADAPTERS, **block: object) -> EngineConfig:
    return parse_config({"model": "m", "engine": "vllm", "vllm": {"enable_lora": True, **block}, "adapters": adapters})


class TestSettings:
    def test_names_and_places(self) -> None:
        assert settings().adapters == ADAPTERS
        assert parse_config({"model": "m"}).adapters == {}
        assert parse_config({"model": "m", "adapters": {}}).adapters == {}

    @pytest.mark.parametrize("name", ["a", "0", "Org/Model-7b_v1.2:latest", "x" * 128])
    def test_a_name_has_what_a_models_id_has(self, name: str) -> None:
        assert settings({name: "f"}).adapters == {name: "f"}

    @pytest.mark.parametrize("name", ["", " ", "a b", "-a", "/a", "é", "a\n", "a\0", "x" * 129, "a?b", "a#b", "a%b"])
    def test_any_other_name_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="the name of an adapter begins with a letter or a digit"):
            settings({name: "f"})

    @pytest.mark.parametrize(
        "adapters", [{"a": ""}, {"a": 7}, {"a": None}, ["a"], "a", {str(n): "f" for n in range(1025)}]
    )
    def test_what_is_no_table_of_places_is_refused(self, adapters: object) -> None:
        with pytest.raises(ConfigError, match="adapters"):
            settings(adapters)

    def test_the_native_engine_says_that_it_has_none(self) -> None:
        with pytest.raises(ConfigError, match='adapters: the engine native has none; set "engine": "vllm" and'):
            parse_config({"model": "m", "adapters": ADAPTERS})

    @pytest.mark.parametrize("block", [{}, {"enable_lora": False}, {"enable_lora": "true"}])
    def test_lora_must_be_enabled(self, block: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=r'adapters: set "vllm": \{"enable_lora": true\} too'):
            parse_config({"model": "m", "engine": "vllm", "vllm": block, "adapters": ADAPTERS})

    def test_an_adapter_has_not_the_name_of_its_model(self, tmp_path: Path) -> None:
        written = {"model": "m", "engine": "vllm", "vllm": {"enable_lora": True}, "adapters": {"chat": "f"}}
        (tmp_path / "engine.json").write_text(json.dumps(written))
        with pytest.raises(ConfigError, match="adapters: chat is the name of the model itself"):
            load_config("chat", tmp_path, {}, {})
        assert load_config("other", tmp_path, {}, {}).adapters == {"chat": "f"}


class TestArguments:
    @staticmethod
    def room(count: int, on_cpu: bool = False, **block: object) -> tuple[object, object]:
        config = settings({f"a{number}": "f" for number in range(count)}, **block)
        given = vllm_arguments(config, KNOWN, on_cpu=on_cpu)
        return given.get("max_loras"), given.get("max_cpu_loras")

    def test_all_stay_in_memory_and_some_take_turns_on_the_device(self) -> None:
        assert self.room(3) == (3, 3)
        assert self.room(20) == (8, 20)
        assert self.room(3, max_loras=2) == (2, 3)
        assert self.room(3, max_loras=5) == (5, 5)
        assert self.room(3, max_cpu_loras=9) == (3, 9)

    def test_on_a_cpu_the_model_itself_takes_the_place_of_one(self) -> None:
        assert self.room(3, on_cpu=True) == (4, 4)
        assert self.room(3, on_cpu=True, max_loras=1) == (2, 4)

    def test_less_memory_than_adapters_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"vllm.max_cpu_loras: must be at least 3.*\(got 2\)"):
            self.room(3, max_cpu_loras=2)

    def test_room_for_none_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"vllm\.enable_lora: is set, but there are no adapters"):
            self.room(0)
        assert self.room(0, enable_lora=False) == (None, None)

    def test_what_is_no_number_is_for_vllm_to_refuse(self) -> None:
        assert self.room(2, max_loras="two") == ("two", None)  # for vLLM to refuse


class TestRequests:
    @pytest.mark.parametrize("nothing", [(None, None), (b"", None), (None, ""), (b"", "sql")])
    def test_the_model_itself(self, nothing: tuple[bytes | None, object]) -> None:
        assert read_adapter(*nothing, ADAPTERS) is None

    def test_the_input_wins_over_the_parameter(self) -> None:
        assert read_adapter(b"sql", None, ADAPTERS) == "sql"
        assert read_adapter(None, "org/poet", ADAPTERS) == "org/poet"
        assert read_adapter(b"sql", "org/poet", ADAPTERS) == "sql"

    @pytest.mark.parametrize("name", [b"SQL", b"sql ", b"nope", "模型".encode(), b"x" * 1000, b"\0"])
    def test_an_unknown_one_is_refused_with_those_that_there_are(self, name: bytes) -> None:
        with pytest.raises(UnknownModelError) as caught:
            read_adapter(name, None, ADAPTERS)
        assert str(caught.value).startswith("adapter: there is no adapter ")
        assert str(caught.value).endswith("; there are org/poet, sql")
        assert len(str(caught.value)) < 300

    def test_many_are_not_all_listed(self) -> None:
        with pytest.raises(UnknownModelError) as caught:
            read_adapter(b"nope", None, [f"a{number:03d}" for number in range(300)])
        assert "a000, a001" in str(caught.value)
        assert str(caught.value).endswith("a019 and 280 more")

    @pytest.mark.parametrize("value", [7, True, 1.5, ["sql"]])
    def test_what_is_no_name_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidArgumentError, match="adapter: must be the name of an adapter"):
            read_adapter(None, value, ADAPTERS)
        with pytest.raises(InvalidArgumentError, match="adapter: not valid UTF-8"):
            read_adapter(b"\xff", None, ADAPTERS)

    def test_the_parser_takes_it_from_both_doors(self) -> None:
        parser = make_parser(engine="vllm", vllm={"enable_lora": True}, adapters=ADAPTERS)
        assert parse(parser).adapter is None
        assert parse(parser, adapter=b"sql").adapter == "sql"
        assert parse(parser, parameters={"adapter": "org/poet"}).adapter == "org/poet"

    def test_a_model_without_adapters_says_so(self) -> None:
        with pytest.raises(UnknownModelError, match="there is no adapter 'sql'; this model has none, so leave it out"):
            parse(adapter=b"sql")


class TestFiles:
    def test_one_that_is_whole(self, tmp_path: Path) -> None:
        adapter = find_adapter("sql", str(make_adapter(tmp_path / "sql", 1)))
        assert (adapter.name, adapter.rank, adapter.made_for) == ("sql", RANK, "tiny-chat")
        assert len(adapter.sizes) == 4 * len(MODULES)
        assert adapter.sizes["base_model.model.model.layers.0.mlp.down_proj"] == (192, 768)

    def test_the_larger_of_the_rank_that_it_says_and_that_it_has(self, tmp_path: Path) -> None:
        written = {"r": 4, "rank_pattern": {"q_proj": 6}}
        factors = load_file(make_adapter(tmp_path / "a", 1, rank=2) / "adapter_model.safetensors")
        assert find_adapter("b", str(write_adapter(tmp_path / "b", factors, **written))).rank == 6
        factors = load_file(make_adapter(tmp_path / "c", 1, rank=9) / "adapter_model.safetensors")
        assert find_adapter("d", str(write_adapter(tmp_path / "d", factors, **written))).rank == 9

    @staticmethod
    def refusal(place: str | Path) -> str:
        with pytest.raises(ConfigError) as caught:
            find_adapter("sql", str(place))
        sentence = str(caught.value)
        assert sentence.startswith("adapters.sql: ")
        assert "\n" not in sentence
        return sentence

    @pytest.mark.parametrize("place", ["/nonexistent/sql", "./sql", "sql", "a/b/c", "~nobody/x/y"])
    def test_no_folder(self, place: str) -> None:
        assert self.refusal(place) == f"adapters.sql: there is no folder {place!r}"

    def test_no_repository_that_can_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise OSError("We couldn't connect\nto the hub")

        monkeypatch.setattr(adapter_files, "cached_file", unreachable)
        assert "fetch it by: triton-chat-server fetch hub --id org/sql --adapter" in self.refusal("org/sql")

    def test_a_repository_of_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_adapter(tmp_path / "snapshot", 1)
        monkeypatch.setattr(adapter_files, "cached_file", lambda _, name, **__: str(folder / name))
        assert find_adapter("sql", "org/sql").folder == folder

    def test_files_that_are_missing(self, tmp_path: Path) -> None:
        folder = make_adapter(tmp_path / "sql", 1)
        (folder / "adapter_config.json").rename(folder / "config.json")
        assert "adapter_config.json is missing" in self.refusal(folder)
        (folder / "config.json").rename(folder / "adapter_config.json")
        (folder / "adapter_model.safetensors").unlink()
        assert "adapter_model.safetensors is missing; fetch" in self.refusal(folder)

    @pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
    def test_pickled_weights_are_not_loaded(self, tmp_path: Path, name: str) -> None:
        folder = make_adapter(tmp_path / "sql", 1)
        (folder / "adapter_model.safetensors").rename(folder / name)
        assert f"{name} may hold code, convert it by: triton-chat-server fetch" in self.refusal(folder)

    @pytest.mark.parametrize(
        ("written", "part"),
        [
            ("{", "is not JSON"),
            ("[]", "must be a JSON object"),
            ('{"r": 8}', "type None; only LORA"),
            ('{"peft_type": "IA3"}', "type 'IA3'; only LORA"),
            ('{"peft_type": "LORA"}', "no valid rank (r: None)"),
            ('{"peft_type": "LORA", "r": 0}', "no valid rank (r: 0)"),
            ('{"peft_type": "LORA", "r": 8, "rank_pattern": [1]}', "no valid rank"),
        ],
    )
    def test_a_configuration_that_is_none(self, tmp_path: Path, written: str, part: str) -> None:
        folder = make_adapter(tmp_path / "sql", 1)
        (folder / "adapter_config.json").write_text(written)
        assert part in self.refusal(folder)

    def test_weights_that_are_none(self, tmp_path: Path) -> None:
        folder = make_adapter(tmp_path / "sql", 1)
        whole = (folder / "adapter_model.safetensors").read_bytes()
        for broken in (b"", b"pickle", whole[: len(whole) // 2]):
            (folder / "adapter_model.safetensors").write_bytes(broken)
            assert "is damaged or incomplete" in self.refusal(folder)
        save_file({"model.norm.weight": np.ones(4, np.float32)}, folder / "adapter_model.safetensors")
        assert "has no weights of a LoRA adapter" in self.refusal(folder)
        lone = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        save_file({lone: np.ones((4, 4), np.float32)}, folder / "adapter_model.safetensors")
        assert "only one of lora_A and lora_B for layers.0.mlp.up_proj" in self.refusal(folder)
        both = {lone: np.ones((4, 4), np.float32), lone.replace("_A", "_B"): np.ones((4, 3), np.float32)}
        save_file(both, folder / "adapter_model.safetensors")
        assert "of layers.0.mlp.up_proj that do not fit each other" in self.refusal(folder)

    def test_one_of_the_head_is_refused(self, tmp_path: Path) -> None:
        """vLLM leaves it out of `prompt_logprobs` (vllm-project/vllm, issue 51594)."""
        name = "base_model.model.lm_head.lora_{}.weight"
        head = {name.format("A"): torch.zeros(8, 192), name.format("B"): torch.zeros(3456, 8)}
        assert "it changes lm_head" in self.refusal(write_adapter(tmp_path / "head", head))

    def test_what_it_changes(self, tmp_path: Path) -> None:
        adapter = find_adapter("sql", str(make_adapter(tmp_path / "sql", 1)))
        assert adapter.targets == {"q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"}
        name = "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_{}.weight"
        experts = {name.format("A"): torch.zeros(8, 4), name.format("B"): torch.zeros(4, 8)}
        moe = find_adapter("moe", str(write_adapter(tmp_path / "moe", experts)))
        assert moe.targets == {"up_proj", "experts"}

    def test_zeros_change_nothing_and_fit(self, tmp_path: Path) -> None:
        like = find_adapter("sql", str(make_adapter(tmp_path / "sql", 1)))
        (tmp_path / "zeros").mkdir()
        write_zeros(tmp_path / "zeros", like)
        zeros = find_adapter("zeros", str(tmp_path / "zeros"))
        check_base(zeros, base_of(TINY))
        weights = load_file(tmp_path / "zeros" / "adapter_model.safetensors")
        assert len(weights) == 2
        assert not any(weight.any() for weight in weights.values())


def base_of(folder: Path) -> BaseWeights:
    base = BaseWeights.of(str(folder))
    assert base is not None
    return base


class TestBase:
    @pytest.fixture
    def factors(self, tmp_path: Path) -> dict[str, torch.Tensor]:
        return load_file(make_adapter(tmp_path / "right", 1) / "adapter_model.safetensors")

    @staticmethod
    def refusal(folder: Path, base: Path = TINY) -> str:
        with pytest.raises(ConfigError) as caught:
            check_base(find_adapter("sql", str(folder)), base_of(base))
        return str(caught.value)

    def test_that_of_this_model(self, tmp_path: Path, factors: dict[str, torch.Tensor]) -> None:
        check_base(find_adapter("sql", str(tmp_path / "right")), base_of(TINY))

    @pytest.mark.parametrize("which", ["A", "B"])
    def test_other_sizes(self, tmp_path: Path, factors: dict[str, torch.Tensor], which: str) -> None:
        """vLLM says nothing where it is too little."""
        name = f"base_model.model.model.layers.2.mlp.down_proj.lora_{which}.weight"
        factors[name] = factors[name][:, :100] if which == "A" else factors[name][:100]
        here = {"A": "192x100", "B": "100x768"}[which]
        assert self.refusal(write_adapter(tmp_path / "x", {n: f.contiguous() for n, f in factors.items()})) == (
            f"adapters.sql: it is for another base model (tiny-chat): layers.2.mlp.down_proj is {here} there, "
            "192x768 here; name an adapter of the model that is served"
        )

    def test_more_layers(self, tmp_path: Path, factors: dict[str, torch.Tensor]) -> None:
        deeper = {name.replace("layers.3.", "layers.4."): factor for name, factor in factors.items()}
        assert "this model has no layers.4" in self.refusal(write_adapter(tmp_path / "x", deeper))

    def test_what_is_no_matrix(self, tmp_path: Path, factors: dict[str, torch.Tensor]) -> None:
        name = "base_model.model.model.layers.0.input_layernorm.lora_{}.weight"
        factors |= {name.format("A"): torch.zeros(RANK, 192), name.format("B"): torch.zeros(192, RANK)}
        assert "it changes layers.0.input_layernorm, which is no matrix" in self.refusal(
            write_adapter(tmp_path / "x", factors)
        )

    def test_other_modules(self, tmp_path: Path, factors: dict[str, torch.Tensor]) -> None:
        other = {name.replace("model.layers.", "transformer.h."): factor for name, factor in factors.items()}
        folder = write_adapter(tmp_path / "x", other, base_model_name_or_path="openai/gpt")
        assert "another base model (openai/gpt): none of its modules is in this model" in self.refusal(folder)

    @pytest.mark.parametrize("prefix", ["model.language_model.layers.", "language_model.model.layers.", "layers."])
    def test_names_may_begin_otherwise(self, tmp_path: Path, factors: dict[str, torch.Tensor], prefix: str) -> None:
        renamed = {name.replace("model.model.layers.", f"model.{prefix}"): factor for name, factor in factors.items()}
        check_base(find_adapter("sql", str(write_adapter(tmp_path / "x", renamed))), base_of(TINY))

    def test_weights_may_lie_the_other_way_or_be_packed(self, tmp_path: Path, factors: dict[str, torch.Tensor]) -> None:
        """As GPT-2's do, and those of four bits."""
        adapter = find_adapter("sql", str(tmp_path / "right"))
        for turned in (lambda w: w.T.copy(), lambda w: np.zeros((w.size // 2, 1), np.uint8)):
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            shutil.copy(TINY / "config.json", folder)
            weights = {
                name: turned(weight.numpy()) if weight.ndim == 2 else weight.numpy()
                for name, weight in load_file(TINY / "model.safetensors").items()
            }
            save_file(weights, folder / "model.safetensors")
            check_base(adapter, base_of(folder))

    def test_a_checkpoint_that_is_not_whole_yet_shows_nothing(self, tmp_path: Path) -> None:
        shutil.copy(TINY / "config.json", tmp_path)
        assert BaseWeights.of(str(tmp_path)) is None
        index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        save_file({"layers.0.a.weight": np.ones((2, 3), np.float32)}, tmp_path / "one.safetensors")
        assert BaseWeights.of(str(tmp_path)) is None
        save_file({"layers.1.a.weight": np.ones((2, 3), np.float32)}, tmp_path / "two.safetensors")
        assert base_of(tmp_path).layers == {"layers.0", "layers.1"}


class TestWhatTheTokenizerTells:
    @pytest.fixture
    def tokenizers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizers:
        """No checkpoint is there, so none is loaded."""
        monkeypatch.delenv("TRITON_CHAT_ENGINE_CONFIG", raising=False)
        adapters = {"sql": "/models/adapters/sql", "org/poet": "org/poet-lora"}
        vllm = {"model": "none", "engine": "vllm", "vllm": {"enable_lora": True}, "adapters": adapters}
        for name, written in (("chat", vllm), ("plain", {"model": "none"}), ("wrong", {"modle": "none"})):
            (tmp_path / name / "1").mkdir(parents=True)
            (tmp_path / name / "1" / "engine.json").write_text(json.dumps(written))
        return Tokenizers(tmp_path)

    def test_those_of_each_model_by_where_they_are_from_and_no_path(self, tokenizers: Tokenizers) -> None:
        tokens = tokenizers.tokens(TokenizerRequest(parameters={"return_adapters": True}))
        chat = {"sql": "sql", "org/poet": "org/poet-lora"}
        assert tokens.info == {"adapters": {"chat": chat, "plain": {}, "wrong": {}}}

    @pytest.mark.parametrize(
        "more", [{"model": b"chat"}, {"text_input": b"x"}, {"token_ids": b"[1]"}, {"messages": b"[]"}]
    )
    def test_nothing_else_goes_with_it(self, tokenizers: Tokenizers, more: dict[str, bytes]) -> None:
        with pytest.raises(InvalidArgumentError, match=r"^return_adapters: .*leave out"):
            tokenizers.tokens(TokenizerRequest(parameters={"return_adapters": True}, **more))
        with pytest.raises(InvalidArgumentError, match="leave out return_info"):
            tokenizers.tokens(TokenizerRequest(parameters={"return_adapters": True, "return_info": True}))
