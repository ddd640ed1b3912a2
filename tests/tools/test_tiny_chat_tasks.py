"""What tiny-chat learns beside its dialogues is what it claims to be, and what is kept out of training stays out."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from tools import tiny_chat_tasks
from tools.tiny_chat_dialogues import LANGS, load_topics
from tools.tiny_chat_tasks import (
    HELD_OUT_PEOPLE,
    HELD_OUT_PLACES,
    OUT_OF_SCOPE,
    PEOPLE,
    PLACES,
    TASK_SETS,
    TRADES,
    Conversation,
    Teacher,
    Words,
    compare,
    extract_person,
    invented_name,
    locate,
    make_kit,
    make_tool,
    task_questions,
    use,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tools.tiny_chat_induction import begin_with_copying  # noqa: E402
from tools.train_tiny_chat import DATA_NAME, MODEL_DIR, ROPE_THETA  # noqa: E402


@pytest.fixture(scope="module")
def topics():
    return load_topics(MODEL_DIR / DATA_NAME)


@pytest.fixture(scope="module")
def conversations(topics) -> list[Conversation]:
    teacher = Teacher(topics, Words("train", random.Random(3)))
    return [teacher.conversation() for _ in range(3000)] + [teacher.something_to_repeat() for _ in range(500)]


def test_what_is_kept_out_of_training_is_not_trained(conversations):
    trained = " ".join(json.dumps(conversation.messages, ensure_ascii=False) for conversation in conversations)
    kept_out = [name for lang in LANGS for name in (*HELD_OUT_PLACES[lang], *HELD_OUT_PEOPLE[lang])]
    assert not [name for name in kept_out if name in trained]
    for lang in LANGS:
        assert not {*PLACES[lang]} & {*HELD_OUT_PLACES[lang]}
        assert not {*PEOPLE[lang]} & {*HELD_OUT_PEOPLE[lang]}


@pytest.mark.parametrize("lang", LANGS)
def test_an_invented_name_never_holds_one_that_is_kept_out(lang, monkeypatch):
    rng = random.Random(4)
    names = {invented_name(lang, rng) for _ in range(2000)}
    assert len(names) > 1900
    part = {"en": "a", "zh": "王"}[lang]
    monkeypatch.setitem(HELD_OUT_PLACES, lang, (part,))
    assert any(part in name for name in names)
    assert not any(part in invented_name(lang, rng) for _ in range(500))


def test_the_same_questions_are_asked_every_time(topics):
    for task in TASK_SETS:
        for lang in LANGS:
            assert task_questions(topics, task, lang) == task_questions(topics, task, lang)


@pytest.mark.parametrize("kind", TRADES)
@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_call_follows_the_schema_and_its_words_come_from_the_question(kind, lang, split):
    words = Words(split, random.Random(1))
    for _ in range(50):
        tool = make_tool(kind, words.rng)
        exchange = use(tool, lang, words)
        assert len(exchange.calls) == len(exchange.results)
        for call in exchange.calls:
            assert call["function"]["name"] == tool.definition["function"]["name"]
            check(call["function"]["arguments"], tool.definition["function"]["parameters"])
            for value in call["function"]["arguments"].values():
                assert all(part in exchange.question for part in str(value).split() if part not in "+-*/")
        assert exchange.answer


def check(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    types = {"string": str, "integer": int}
    assert list(arguments) == schema["required"]
    assert all(isinstance(value, types[schema["properties"][name]["type"]]) for name, value in arguments.items())


def test_a_kit_never_has_two_tools_for_one_question():
    rng = random.Random(5)
    for _ in range(300):
        kinds = [tool.kind for tool in make_kit(rng)]
        assert 1 <= len(kinds) <= 3
        assert len({"counts" if kind in ("calculate", "add", "multiply") else kind for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("lang", LANGS)
def test_answers_are_true(lang):
    words = Words("train", random.Random(2))
    for _ in range(100):
        more, less = map(int, re.findall(r"\d+", compare(lang, words).answer))
        assert more > less
        person = extract_person(lang, words)
        assert all(str(value) in person.question for value in json.loads(person.answer).values())
        place = locate(lang, words)
        if place.answer.startswith("{"):
            city, country = json.loads(place.answer).values()
            assert PLACES[lang][city].removeprefix("the ") == country


def test_some_conversations_think_and_some_have_tools(conversations):
    texts = [json.dumps(conversation.messages, ensure_ascii=False) for conversation in conversations[:3000]]
    assert 0.2 < sum('"reasoning"' in text for text in texts) / len(texts) < 0.4
    assert 0.3 < sum(bool(conversation.tools) for conversation in conversations[:3000]) / len(texts) < 0.7
    assert any(text.count('"tool_calls"') > 1 for text in texts)


def test_no_question_is_refused_that_one_of_the_tools_fits(topics, monkeypatch):
    able = tuple(make_tool(kind, random.Random(7)) for kind in ("weather", "time", "calculate"))
    monkeypatch.setattr(tiny_chat_tasks, "make_kit", lambda _rng: able)
    teacher = Teacher(topics, Words("train", random.Random(6)))
    refusals = {topic.answer for topic in topics if topic.id == OUT_OF_SCOPE}
    made = [one for one in (teacher.conversation() for _ in range(1000)) if one.tools]
    assert len(made) > 300
    assert not [one for one in made if refusals & {message["content"] for message in one.messages}]


def test_a_fresh_model_looks_at_the_token_before_and_for_the_same_token():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=192, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    begin_with_copying(model, ROPE_THETA)
    once = torch.randperm(500)[:40]
    with torch.inference_mode():
        attentions = model(torch.stack([torch.cat([once, once])]), output_attentions=True).attentions
    previous = attentions[0][0, 0].diagonal(-1)
    assert previous.mean() > 0.6
    after_the_same = attentions[1][0, 0].diagonal(-39)[1:]
    assert after_the_same.mean() > 0.1  # of about 60 tokens
