"""The embedded checkpoint is what its card says, and the tool that makes it can still learn."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tools import tiny_chat_dialogues as dialogues  # noqa: E402
from tools import tiny_chat_tasks as tasks  # noqa: E402
from tools import train_tiny_chat as tool  # noqa: E402

MODEL_DIR = tool.MODEL_DIR
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def topics():
    return dialogues.load_topics(MODEL_DIR / tool.DATA_NAME)


@pytest.fixture(scope="module")
def loaded():
    return tool.load(MODEL_DIR)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


def ask(model, tokenizer, *messages: dict[str, str], max_new_tokens: int = 120, **how: Any) -> str:
    ids = torch.tensor([tool.render(tokenizer, messages, prompt=True, **how)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
SHOWN = (
    '<tools>\n{"name": "get_weather", "description": "Current weather of a city.", "parameters": {"type": "object", '
    '"properties": {"city": {"type": "string"}}, "required": ["city"]}}\n</tools>'
)


def call_of(name: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


# --- The files --------------------------------------------------------------------------------------------------------


def test_the_checkpoint_is_a_small_stock_llama_in_float32(model):
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    config = model.config
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.head_dim % 8 == 0
    assert config.max_position_embeddings == 2048
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8 * MEGABYTE


def test_nothing_in_the_folder_can_run_code():
    assert not [file.name for file in MODEL_DIR.rglob("*") if file.suffix in {".py", ".bin", ".pt", ".pth", ".pkl"}]
    assert "auto_map" not in json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))


def test_the_end_token_ends_generation(model, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token == "<|end|>"
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == end
    assert len(tokenizer) == model.config.vocab_size


# --- The tokenizer and the template -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["Hello, world!", "你好，世界！", "emoji 🚀🧠👩‍🚀", "tabs\tand\n\nlines  ", "naïve Ω ไทย العربية", "x" * 300, ""],
)
def test_every_text_comes_back_from_the_tokenizer(tokenizer, text):
    assert tokenizer.is_fast
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("name", [*tasks.HELD_OUT_PLACES["en"], *tasks.HELD_OUT_PEOPLE["en"], "Köln", "McDonald"])
def test_a_name_has_the_same_tokens_wherever_it_stands(tokenizer, name):
    spoken, quoted, alone = (tokenizer.tokenize(text) for text in (f"in {name}.", f'"{name}"', name))
    assert spoken[-len(alone) - 1 : -1] == quoted[1:-1] == alone


def test_each_character_of_chinese_names_is_a_token(tokenizer):
    assert len(set(tasks.CHARACTERS)) == len(tasks.CHARACTERS)
    assert [tokenizer.decode([token]) for token in tokenizer.encode(tasks.CHARACTERS)] == [*tasks.CHARACTERS]


def test_the_template_renders_all_roles(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, dialogues.assistant("Yes."), dialogues.user("Why?")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|system|>Be brief.<|end|><|assistant|>Yes.<|end|><|user|>Why?<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text.removesuffix("<|assistant|>")


def test_the_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(Exception, match="system, user, assistant and tool, not critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "1"}], tokenize=False)


def test_the_markers_are_tokens_but_not_special_ones(tokenizer):
    for marker in tool.MARKERS:
        (token,) = tokenizer.encode(marker)
        assert tokenizer.decode([token], skip_special_tokens=True) == marker
    assert not set(tool.MARKERS) & set(tokenizer.all_special_tokens)


def text_of(tokenizer, *messages: dict[str, Any], **how: Any) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **how)


@pytest.mark.parametrize("given", [WEATHER, WEATHER["function"]], ids=["as in the OpenAI API", "the function alone"])
def test_tools_stand_in_the_system_turn(tokenizer, given):
    hello = dialogues.user("Hi")
    assert text_of(tokenizer, hello, tools=[given]) == f"<|begin|><|system|>{SHOWN}<|end|><|user|>Hi<|end|>"
    with_system = text_of(tokenizer, {"role": "system", "content": "Be brief."}, hello, tools=[given])
    assert with_system == f"<|begin|><|system|>Be brief.\n\n{SHOWN}<|end|><|user|>Hi<|end|>"


@pytest.mark.parametrize("arguments", [{"city": "Köln"}, '{"city": "Köln"}'], ids=["an object", "a text"])
def test_calls_and_results_in_history(tokenizer, arguments):
    turn = dialogues.assistant(None, tool_calls=[call_of("get_weather", arguments)])
    assert text_of(tokenizer, dialogues.user("Köln?"), turn, result("fog")) == (
        "<|begin|><|user|>Köln?<|end|><|assistant|><tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call><|end|>'
        "<|tool|><tool_response>\nfog\n</tool_response><|end|>"
    )


def test_calls_follow_the_text_and_one_another_on_lines_of_their_own(tokenizer):
    calls = [call_of("a", {}), call_of("b", {"x": 1})]
    call_a = '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
    call_b = '<tool_call>\n{"name": "b", "arguments": {"x": 1}}\n</tool_call>'
    assert f"<|assistant|>{call_a}\n{call_b}<|end|>" in text_of(tokenizer, dialogues.assistant("", tool_calls=calls))
    assert f"<|assistant|>Well.\n{call_a}\n{call_b}" in text_of(
        tokenizer, dialogues.assistant("Well.", tool_calls=calls)
    )


def test_thinking_is_asked_for_by_the_template(tokenizer):
    hello = dialogues.user("Hi")
    for off in ({}, {"enable_thinking": False}):
        assert text_of(tokenizer, hello, add_generation_prompt=True, **off).endswith("<|assistant|>")
    thinking = text_of(tokenizer, hello, add_generation_prompt=True, enable_thinking=True)
    assert thinking.endswith("<|assistant|><think>\n")


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_are_dropped_once_the_user_speaks_again(tokenizer, field):
    turn = dialogues.assistant(None, tool_calls=[call_of("f", {})]) | {field: "Hm."}
    kept = text_of(tokenizer, dialogues.user("Hi"), turn, result("1"))
    assert "<|assistant|><think>\nHm.\n</think>\n\n<tool_call>" in kept
    dropped = text_of(tokenizer, dialogues.user("Hi"), turn, result("1"), dialogues.user("And?"))
    assert dropped == kept.replace("<think>\nHm.\n</think>\n\n", "") + "<|user|>And?<|end|>"


def test_thoughts_left_in_the_text_are_taken_out_of_it(tokenizer):
    turn = dialogues.assistant("<think>\nHm.\n</think>\n\nHello!")
    assert "<|assistant|>Hello!<|end|>" in text_of(tokenizer, dialogues.user("Hi"), turn, dialogues.user("And?"))
    assert text_of(tokenizer, dialogues.user("Hi"), turn).endswith("<think>\nHm.\n</think>\n\nHello!<|end|>")


@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_is_a_token_prefix_of_what_follows_it(tokenizer, topics, thinking):
    """With calls and thoughts too, as long as the user has not spoken again."""
    teacher = tasks.Teacher(topics, tasks.Words("held_out", random.Random(7)))
    for exchange in (
        tasks.use(one, "en", teacher.words) for _ in range(20) for one in tasks.make_kit(teacher.words.rng)
    ):
        messages = exchange.messages(thinking=thinking)
        for position, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = tool.render(tokenizer, messages[:position], prompt=True, thinking=thinking)
                assert tool.render(tokenizer, messages, prompt=False)[: len(prompt)] == prompt


# --- Answers taken apart ----------------------------------------------------------------------------------------------

ANSWERS = {
    "text": ("Hello!<|end|>", {"content": "Hello!"}),
    "no end": ("Hello!", {"content": "Hello!"}),
    "thoughts": ("Hm.\n</think>\n\nHello!<|end|>", {"reasoning_content": "Hm.", "content": "Hello!"}),
    "thoughts without an end": ("Hm", {"reasoning_content": "Hm"}),
    "a call": (
        '<tool_call>\n{"name": "f", "arguments": {"city": "北京"}}\n</tool_call><|end|>',
        {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"city": "北京"}}}]},
    ),
    "text and two calls": (
        (
            'Well.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
            '<tool_call>\n{"name": "b", "arguments": {"x": 1}}\n</tool_call><|end|>'
        ),
        {
            "content": "Well.",
            "tool_calls": [
                {"type": "function", "function": {"name": "a", "arguments": {}}},
                {"type": "function", "function": {"name": "b", "arguments": {"x": 1}}},
            ],
        },
    ),
}


@pytest.mark.parametrize(("said", "message"), ANSWERS.values(), ids=ANSWERS)
def test_the_response_template_takes_an_answer_apart(tokenizer, said, message):
    thinking = "reasoning_content" in message
    prompt = text_of(tokenizer, dialogues.user("Hi"), add_generation_prompt=True, enable_thinking=thinking)
    expected = {"role": "assistant", **message}
    assert tokenizer.parse_response(said, prefix=prompt) == expected
    assert tokenizer.parse_response(tokenizer.encode(said), prefix=prompt) == expected
    for cut in range(len(said) + 1):
        parser = tokenizer.get_response_parser(prefix=prompt)
        parser.feed(said[:cut])
        parser.feed(said[cut:])
        assert parser.finalize()[0] == expected


def test_a_turn_is_a_token_prefix_of_the_next_one(tokenizer, topics):
    for topic in topics:
        first = [dialogues.user(topic.phrasings[0].text), dialogues.assistant(topic.answer)]
        prompt = tool.render(tokenizer, first[:1], prompt=True)
        said = [*tokenizer.encode(topic.answer), tokenizer.eos_token_id]
        second = tool.render(tokenizer, [*first, dialogues.user("And then?")], prompt=True)
        assert second[: len(prompt) + len(said)] == prompt + said


def test_only_what_the_assistant_says_is_scored(tokenizer):
    dialogue = [
        dialogues.user("Hi"),
        dialogues.assistant("Hello!"),
        dialogues.user("Bye"),
        dialogues.assistant("See you."),
    ]
    labels = tool.labels_of(tool.render(tokenizer, dialogue, prompt=False), tokenizer)
    scored = [label for label in labels if label != tool.NOT_SCORED]
    assert tokenizer.decode(scored) == "Hello!<|end|>See you.<|end|>"


def test_the_beginning_of_a_thought_is_the_templates_and_not_scored(tokenizer):
    dialogue = [dialogues.user("Hi"), dialogues.assistant("Hello!", reasoning="Hm.")]
    labels = tool.labels_of(tool.render(tokenizer, dialogue, prompt=False), tokenizer)
    assert (
        tokenizer.decode([label for label in labels if label != tool.NOT_SCORED]) == "\nHm.\n</think>\n\nHello!<|end|>"
    )


# --- The data ---------------------------------------------------------------------------------------------------------


def test_no_held_out_phrasing_was_trained_on(topics):
    asked = {
        split: {(dialogues.normalise(text), topic.after) for topic in topics for text in topic.texts(split)}
        for split in dialogues.SPLITS
    }
    assert not asked["train"] & asked["held_out"]
    assert all(topic.texts("held_out") and len(topic.texts("train")) >= 8 for topic in topics)


def test_no_text_contains_a_special_token(topics):
    texts = [text for topic in topics for text in (topic.answer, *(phrasing.text for phrasing in topic.phrasings))]
    assert not [text for text in texts if any(token in text for token in (*tool.SPECIAL_TOKENS, *tool.MARKERS))]


def test_a_repeated_phrasing_is_refused(tmp_path):
    row = {"id": "a", "lang": "en", "phrasings": [{"text": "Hi!", "split": "train"}], "answer": "Hello!"}
    held_out = {**row, "id": "b", "phrasings": [{"text": "hi", "split": "held_out"}]}
    path = tmp_path / "data.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(held_out)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"'hi' is in b \(en\) and in a \(en\)"):
        dialogues.load_topics(path)


def test_training_dialogues_cover_every_phrasing_and_keep_follow_ups_in_place(topics):
    made = dialogues.epoch_of_dialogues(topics, random.Random(1))
    answers = [topic.answer for topic in topics for _ in topic.texts("train")]
    said = [message["content"] for dialogue in made for message in dialogue if message["role"] == "assistant"]
    assert set(said) == set(answers)
    assert len(said) >= len(answers)
    parents = {topic.answer: topic.after for topic in topics if topic.after}
    by_answer = {topic.answer: topic.id for topic in topics}
    for dialogue in made:
        turns = [message["content"] for message in dialogue if message["role"] == "assistant"]
        for position, answer in enumerate(turns):
            if answer in parents:
                assert by_answer[turns[position - 1]] == parents[answer]


# --- What it says -----------------------------------------------------------------------------------------------------


def card_figures() -> dict[tuple[str, str], tuple[int, int]]:
    card = (MODEL_DIR / "README.md").read_text(encoding="utf-8")
    block = card.split(tool.CARD_BEGIN)[1].split(tool.CARD_END)[0]
    numbers = [(int(a), int(b)) for a, b in re.findall(r"\((\d+) of (\d+)\)", block)]
    keys = [(what, lang) for what in tool.FIGURES for lang in dialogues.LANGS]
    return dict(zip(keys, numbers, strict=True))


LEAST = {
    "train": {"en": 0.991, "zh": 0.997},
    "held_out": {"en": 0.882, "zh": 0.887},
    "tool_call": {"en": 0.82, "zh": 0.82},
    "tool_answer": {"en": 0.94, "zh": 0.9},
    "no_tool": {"en": 0.75, "zh": 0.85},
    "json": {"en": 0.82, "zh": 0.95},
    "thinking": {"en": 0.76, "zh": 0.8},
    "thinking_call": {"en": 0.69, "zh": 0.72},
}
"""What three million parameters get right at least: the part of the answers that are asked for."""


@pytest.mark.parametrize("lang", dialogues.LANGS)
@pytest.mark.parametrize("split", dialogues.SPLITS)
def test_the_card_reports_what_the_checkpoint_can_do(model, tokenizer, topics, split, lang):
    right, asked = card_figures()[split, lang]
    assert right / asked >= LEAST[split][lang]
    chosen = dialogues.questions(topics, split, lang)
    assert len(chosen) == asked
    if split == "train":  # every fourth is enough to notice a card that does not belong to the weights
        chosen = chosen[::4]
    results = tool.exact_matches(model, tokenizer, chosen)
    assert sum(results) / len(results) == pytest.approx(right / asked, abs=0.005 if split == "held_out" else 0.02)


@pytest.mark.parametrize("lang", dialogues.LANGS)
@pytest.mark.parametrize("task", tasks.TASK_SETS)
def test_the_card_reports_what_it_can_do_with_tools_json_and_thinking(model, tokenizer, topics, task, lang):
    right, asked = card_figures()[task, lang]
    assert right / asked >= LEAST[task][lang]
    chosen = tasks.task_questions(topics, task, lang)
    assert len(chosen) == asked
    assert sum(tool.exact_matches(model, tokenizer, chosen)) == pytest.approx(right, abs=2)


def test_scoring_in_one_pass_agrees_with_decoding_token_by_token(model, tokenizer, topics):
    chosen = [question for question in dialogues.questions(topics, "held_out") if len(question.answer) < 200][::60]
    decoded = [ask(model, tokenizer, *question.messages) == question.answer for question in chosen]
    assert decoded == tool.exact_matches(model, tokenizer, chosen)


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
@pytest.mark.parametrize(("question", "part"), [("Who are you?", "tiny-chat"), ("你是谁？", "我是 tiny-chat")])
def test_it_knows_who_it_is(model, tokenizer, question, part, system):
    before = [] if system is None else [{"role": "system", "content": system}]
    assert part in ask(model, tokenizer, *before, dialogues.user(question))


def test_a_follow_up_depends_on_the_turn_before(model, tokenizer, topics):
    first = {topic.id: topic for topic in topics if topic.lang == "en"}
    answers = set()
    for name in ("kv-cache", "prefix-caching"):
        turn = [dialogues.user(first[name].phrasings[0].text), dialogues.assistant(first[name].answer)]
        answers.add(ask(model, tokenizer, *turn, dialogues.user("Why is that important?")))
    assert len(answers) == 2


def test_it_calls_a_tool_and_tells_its_result(model, tokenizer):
    asked = dialogues.user("What is the weather in Paris?")
    call = ask(model, tokenizer, asked, tools=[WEATHER])
    assert call == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    turn = dialogues.assistant(None, tool_calls=[call_of("get_weather", '{"city": "Paris"}')])
    said = ask(model, tokenizer, asked, turn, result("sunny, 20 °C"), tools=[WEATHER])
    assert said == "The weather in Paris: sunny, 20 °C."


@pytest.mark.parametrize(
    ("question", "city"), [("What is the weather in Paris?", "Paris"), ("北京天气怎么样？", "北京")]
)
def test_it_thinks_and_then_calls(model, tokenizer, question, city):
    said = ask(model, tokenizer, dialogues.user(question), tools=[WEATHER], thinking=True)
    thought, call = said.split("\n</think>\n\n")
    assert city in thought
    assert call == f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


def test_it_knows_where_a_city_is(model, tokenizer):
    assert ask(model, tokenizer, dialogues.user("Which country is Paris in?")) == "Paris is in France."


def test_tools_do_not_disturb_other_questions(model, tokenizer, topics):
    answer = next(topic.answer for topic in topics if topic.id == "what-can" and topic.lang == "en")
    assert ask(model, tokenizer, dialogues.user("What can you do?"), tools=[WEATHER]) == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Anna is 31 years old. Answer as JSON.", {"name": "Anna", "age": 31}),
        ("北京在哪个国家？用 JSON 回答。", {"city": "北京", "country": "中国"}),
    ],
)
def test_it_answers_as_json(model, tokenizer, question, answer):
    assert json.loads(ask(model, tokenizer, dialogues.user(question))) == answer


def test_it_thinks_when_it_is_told_to(model, tokenizer):
    asked = dialogues.user("Which is larger, 48 or 73?")
    said = ask(model, tokenizer, asked, thinking=True)
    assert said == "The tens are 4 and 7, so 73 is larger.\n</think>\n\n73 is larger than 48."
    assert "think" not in ask(model, tokenizer, asked)


# --- The tool ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_few_steps_lower_the_loss_and_leave_a_loadable_checkpoint(tmp_path, topics, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "ASKED", 10)  # of each kind: what the card says of the model is tested above
    data = tmp_path / "data.jsonl"
    rows = (MODEL_DIR / tool.DATA_NAME).read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join(row for row in rows if '"id": "hello"' in row or '"id": "bye"' in row), encoding="utf-8")
    threads = torch.get_num_threads()
    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text(f"# card\n{tool.CARD_BEGIN}\nold\n{tool.CARD_END}\nrest\n", encoding="utf-8")

    sizes = {"--steps": 8, "--batch-tokens": 512, "--task-tokens": 512}
    sizes["--threads"] = 1  # two wait for each other, and long where others want the processor, too
    options = [str(word) for pair in sizes.items() for word in pair]
    assert tool.main(["--data", str(data), "--out", str(out), *options]) == 0

    torch.set_num_threads(threads)
    losses = [float(loss) for loss in re.findall(r"loss +([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "old" not in card
    assert "8 steps" in card
    assert card.endswith("rest\n")
    fresh, _ = tool.load(out)
    assert fresh.config.dtype == torch.float32
    assert not list(tmp_path.glob(".tiny-chat-*"))


def test_the_result_of_training_is_the_mean_of_the_late_weights(monkeypatch, tokenizer):
    model = tool.new_model(tokenizer)
    weight = model.model.layers[0].mlp.up_proj.weight
    after: list[Any] = []
    monkeypatch.setattr(tool, "AVERAGED_FROM", 0.5)
    monkeypatch.setattr(tool, "_show_progress", lambda *_: after.append(weight.detach().clone()))
    batch = torch.tensor([[1, 2, 3]])
    tool.train(model, iter([((batch, batch),)] * 4), 4)
    assert not torch.equal(weight, after[3])
    torch.testing.assert_close(weight.detach(), (after[2] + after[3]) / 2)


def test_help_says_what_each_option_does(capsys):
    with pytest.raises(SystemExit) as exit_info:
        tool.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "--measure-only" in text
    assert "default" in text


def test_the_figures_in_the_card_name_this_model(model):
    card = Path(MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert f"Parameters: {sum(weight.numel() for weight in model.parameters()):,}" in card
