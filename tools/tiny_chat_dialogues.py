"""The dialogues of tiny-chat: reading the file, and the conversations that training makes of it. No torch in here."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Lang = Literal["en", "zh"]
Split = Literal["train", "held_out"]
Message = dict[str, Any]
SPLITS: tuple[Split, ...] = ("train", "held_out")
LANGS: tuple[Lang, ...] = ("en", "zh")

# --- The data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phrasing:
    text: str
    split: Split


@dataclass(frozen=True)
class Topic:
    """One answer and the ways to ask for it; a follow-up is asked right after the topic that `after` names."""

    id: str
    lang: Lang
    phrasings: tuple[Phrasing, ...]
    answer: str
    after: str | None = None
    opening: bool = False  # only makes sense as the first thing said, such as "Tell me more."

    def texts(self, split: Split) -> list[str]:
        return [phrasing.text for phrasing in self.phrasings if phrasing.split == split]


@dataclass(frozen=True)
class Question:
    """One phrasing in its conversation: everything up to the reply, and the reply."""

    lang: Lang
    messages: tuple[Message, ...]
    reply: Message
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False

    @property
    def answer(self) -> str:
        """The reply's text; empty where it only calls tools."""
        return self.reply["content"] or ""


def load_topics(path: Path) -> list[Topic]:
    """Reads one topic per line and refuses what would spoil the figures."""
    topics = [_parse_topic(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    seen: dict[tuple[str, str | None], str] = {}
    known = {(topic.id, topic.lang) for topic in topics}
    for topic in topics:
        if topic.after is not None and (topic.after, topic.lang) not in known:
            raise ValueError(f"{topic.id} ({topic.lang}) follows {topic.after!r}, which does not exist")
        for phrasing in topic.phrasings:
            key = (normalise(phrasing.text), topic.after)
            if key in seen:
                raise ValueError(f"{phrasing.text!r} is in {topic.id} ({topic.lang}) and in {seen[key]}")
            seen[key] = f"{topic.id} ({topic.lang})"
    return topics


def _parse_topic(row: dict[str, Any]) -> Topic:
    phrasings = tuple(Phrasing(**phrasing) for phrasing in row.pop("phrasings"))
    return Topic(phrasings=phrasings, **row)


def normalise(text: str) -> str:
    """Letters and digits only, so that case and punctuation never make two phrasings of one."""
    return re.sub(r"[\W_]+", "", text).lower()


def questions(topics: Sequence[Topic], split: Split, lang: Lang | None = None) -> list[Question]:
    """Every phrasing of the split as a conversation; a follow-up comes after its parent's first phrasing."""
    parents = {(topic.id, topic.lang): topic for topic in topics}
    found = []
    for topic in topics:
        if lang is not None and topic.lang != lang:
            continue
        before: tuple[Message, ...] = ()
        if topic.after is not None:
            parent = parents[topic.after, topic.lang]
            before = (user(parent.phrasings[0].text), assistant(parent.answer))
        found += [Question(topic.lang, (*before, user(text)), assistant(topic.answer)) for text in topic.texts(split)]
    return found


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str | None, *, reasoning: str = "", tool_calls: Sequence[Message] = ()) -> Message:
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning"] = reasoning
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    return message


# --- The dialogues the model sees -------------------------------------------------------------------------------------

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a concise assistant.",
    "You are a friendly assistant. Answer briefly.",
    "You are tiny-chat, a demo model.",
    "Be polite and precise.",
    "You are an expert in machine learning who writes for beginners.",
    "Talk like a captain telling stories about the sea.",
    "Today is a Monday in spring. The user works in a large company and has little time.",
    "Never mention prices. Always be honest. If you do not know something, say so.",
    "You work for the support team of a web shop and help customers with their orders all day long.",
    "Answer in one short paragraph.",
    "You answer questions about serving language models.",
    "你是一个乐于助人的助手。",
    "请简短地回答。",
    "你是一位耐心的老师，请用通俗的语言解释。",
    "用户是工程师，时间不多，请直接说重点，不要编造。",
    "你是 tiny-chat，一个演示模型。",
)
OPENERS = {
    "en": ("Hi, ", "Hello, ", "Hey, ", "Hi! ", "Hello! ", "Please tell me: ", "Quick question: ", "OK, ", "And "),
    "zh": ("你好，", "您好，", "请问", "请问一下，", "我想知道，", "那么，", "好的，", "嗨，"),
}
CLOSERS = {
    "en": (" Please.", " Thanks!", " Thank you.", ", please", " please"),
    "zh": ("谢谢！", "谢谢。", "呢？", "，麻烦了", "，谢谢"),
}
SMALL_WORDS = frozenset(
    ("the", "a", "an", "is", "are", "of", "to", "do", "does", "in", "can", "could", "you", "me", "about", "it", "for")
)
SMALL_CHARACTERS = frozenset("的了吗呢啊吧请是个一下")


def vary(text: str, lang: Lang, rng: random.Random) -> str:
    """The same question as another person would type it."""
    if rng.random() < 0.25:
        text = text.rstrip("?.!。？！")
    if rng.random() < 0.15:
        text = text.replace("What is ", "What's ").replace("It is ", "It's ").replace("I am ", "I'm ")
    if rng.random() < 0.15:
        text = _drop_small(text, lang, rng)
    if rng.random() < 0.10:
        text = _mistype(text, rng)
    if rng.random() < 0.12:
        text = rng.choice(OPENERS[lang]) + (text if text.startswith("I ") else text[:1].lower() + text[1:])
    if rng.random() < 0.08:
        text = text + rng.choice(CLOSERS[lang])
    if rng.random() < 0.20:
        text = text.lower()
    return text


def _drop_small(text: str, lang: Lang, rng: random.Random) -> str:
    parts = text.split(" ") if lang == "en" else list(text)
    small = SMALL_WORDS if lang == "en" else SMALL_CHARACTERS
    candidates = [index for index, part in enumerate(parts) if part.lower() in small]
    if candidates and len(parts) > 3:
        parts.pop(rng.choice(candidates))
    return (" " if lang == "en" else "").join(parts)


def _mistype(text: str, rng: random.Random) -> str:
    """Swaps two neighbouring letters of a Latin word, the most common slip."""
    at = rng.randrange(max(1, len(text) - 2))
    pair = text[at : at + 2]
    return text[:at] + pair[::-1] + text[at + 2 :] if pair.isascii() and pair.isalpha() else text


def epoch_of_dialogues(topics: Sequence[Topic], rng: random.Random, *, varied: bool = True) -> list[list[Message]]:
    """Every training phrasing once, in conversations of one to ten turns, some with a system prompt."""
    parents = {(topic.id, topic.lang): topic for topic in topics}
    asked = [(topic, text) for topic in topics for text in topic.texts("train")]
    rng.shuffle(asked)
    dialogues: list[list[Message]] = []
    room = 0
    for topic, text in asked:
        if room <= 0 or topic.opening:
            room = _number_of_turns(rng)
            dialogues.append([{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.3 else [])
        if topic.after is not None:
            parent = parents[topic.after, topic.lang]
            dialogues[-1] += _turn(parent, rng.choice(parent.texts("train")), rng, varied)
        dialogues[-1] += _turn(topic, text, rng, varied)
        room -= 1
    return dialogues


def _number_of_turns(rng: random.Random) -> int:
    return rng.choices((1, 2, 3, 10), weights=(77, 13, 8, 2))[0]


def _turn(topic: Topic, text: str, rng: random.Random, varied: bool) -> list[Message]:
    return [user(vary(text, topic.lang, rng) if varied else text), assistant(topic.answer)]
