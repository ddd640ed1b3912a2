"""What tiny-chat learns beside its dialogues: to call tools, to answer as JSON, to think. No torch in here.

Nothing of it is memorised word for word: places, names, numbers and the tools themselves change in every conversation,
so that the model has to take them from the prompt. Some are kept out of training, to measure whether it does. Read it
from the top: the words, the tools, the exchanges (a question, what the model does, its answer), the conversations, the
questions of the measurement.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tools.tiny_chat_dialogues import (
    LANGS,
    OPENERS,
    SYSTEM_PROMPTS,
    Lang,
    Message,
    Question,
    Split,
    Topic,
    assistant,
    user,
    vary,
)

# --- The words --------------------------------------------------------------------------------------------------------

PLACES: dict[Lang, dict[str, str]] = {
    "en": {
        "Paris": "France", "Lyon": "France", "London": "England", "Leeds": "England", "Berlin": "Germany",
        "Munich": "Germany", "Hamburg": "Germany", "Rome": "Italy", "Milan": "Italy", "Madrid": "Spain",
        "Seville": "Spain", "Lisbon": "Portugal", "Vienna": "Austria", "Prague": "Czechia", "Warsaw": "Poland",
        "Athens": "Greece", "Dublin": "Ireland", "Oslo": "Norway", "Stockholm": "Sweden", "Helsinki": "Finland",
        "Copenhagen": "Denmark", "Brussels": "Belgium", "Amsterdam": "the Netherlands", "Zurich": "Switzerland",
        "Moscow": "Russia", "Cairo": "Egypt", "Nairobi": "Kenya", "Tokyo": "Japan", "Osaka": "Japan",
        "Kyoto": "Japan", "Seoul": "South Korea", "Beijing": "China", "Shanghai": "China", "Shenzhen": "China",
        "Bangkok": "Thailand", "Hanoi": "Vietnam", "Delhi": "India", "Mumbai": "India", "Sydney": "Australia",
        "Melbourne": "Australia", "Toronto": "Canada", "Montreal": "Canada", "New York": "the USA",
        "San Francisco": "the USA", "Boston": "the USA", "Chicago": "the USA", "Seattle": "the USA",
        "Lima": "Peru", "Bogota": "Colombia", "Rio de Janeiro": "Brazil", "Santiago": "Chile",
    },
    "zh": {
        "北京": "中国", "上海": "中国", "广州": "中国", "深圳": "中国", "杭州": "中国", "成都": "中国",
        "西安": "中国", "南京": "中国", "武汉": "中国", "重庆": "中国", "天津": "中国", "青岛": "中国",
        "巴黎": "法国", "里昂": "法国", "伦敦": "英国", "柏林": "德国", "慕尼黑": "德国", "罗马": "意大利",
        "米兰": "意大利", "马德里": "西班牙", "里斯本": "葡萄牙", "维也纳": "奥地利", "雅典": "希腊",
        "莫斯科": "俄罗斯", "开罗": "埃及", "东京": "日本", "大阪": "日本", "京都": "日本", "首尔": "韩国",
        "曼谷": "泰国", "河内": "越南", "德里": "印度", "孟买": "印度", "悉尼": "澳大利亚", "多伦多": "加拿大",
        "纽约": "美国", "旧金山": "美国", "波士顿": "美国", "芝加哥": "美国", "利马": "秘鲁",
    },
}  # fmt: skip
HELD_OUT_PLACES: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Barcelona", "Naples", "Geneva", "Budapest", "Singapore", "Jakarta", "Denver", "Havana", "Lagos", "Los Angeles",
    ),
    "zh": ("苏州", "昆明", "长沙", "大连", "厦门", "日内瓦", "巴塞罗那", "新加坡", "雅加达", "洛杉矶"),
}  # fmt: skip
PEOPLE: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivan", "Julia", "Karl", "Laura", "Maria",
        "Noah", "Olga", "Peter", "Rosa", "Sam", "Tina", "Victor", "Alice", "Bob", "John", "Jason", "Jane", "Tom",
        "John Smith", "Jane Miller", "Jason Brown", "Mary Jones", "Peter Schmidt", "Ana Garcia", "Li Wei",
    ),
    "zh": (
        "小明", "小红", "小华", "小丽", "王芳", "李雷", "韩梅梅", "张伟", "刘洋", "陈静", "赵敏", "孙杰", "周涛",
        "吴磊", "郑爽", "黄丽", "杨帆", "林峰", "何平", "高峰", "马超", "朱琳",
    ),
}  # fmt: skip
HELD_OUT_PEOPLE: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Oliver", "Sophie", "Martin", "Gloria", "Lucas", "Helen", "Jason Liu", "John Doe", "Sarah King", "Paul Weber",
    ),
    "zh": ("小刚", "小美", "李明", "王强", "张丽", "陈伟", "刘芳", "赵磊", "林静", "何涛"),
}  # fmt: skip
ONSETS = (
    "b", "b", "c", "c", "d", "d", "f", "f", "g", "g", "h", "h", "j", "j", "k", "k", "l", "l", "m", "m", "n", "n",
    "p", "p", "r", "r", "s", "s", "t", "t", "v", "v", "w", "w", "y", "z", "qu", "", "",
    "bl", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "kl", "ph", "pl", "pr", "sc", "sh", "sk", "sl", "sp",
    "st", "sw", "th", "tr", "wh",
)  # fmt: skip
VOWELS = (
    "a", "a", "a", "a", "e", "e", "e", "e", "i", "i", "i", "o", "o", "o", "u", "u", "y",
    "ai", "au", "ea", "ee", "ei", "ia", "ie", "io", "ou",
)  # fmt: skip
CODAS = (
    *[""] * 18,
    "b", "ck", "d", "g", "k", "l", "ll", "ld", "m", "n", "n", "n", "nd", "ng", "nt", "p", "r", "r", "rd", "rk", "rn",
    "rt", "s", "s", "sh", "ss", "st", "t", "th", "tz", "v", "x", "z",
)  # fmt: skip
ENDINGS = ("ville", "ton", "burg", "berg", "ford", "port", "land", "field", "son", "es", "er", "a", "o")
CHARACTERS = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭"
    "陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严武戴莫孔向汤伟芳娜敏静丽强磊军洋勇艳杰"
    "娟涛明超秀霞平刚桂英华玉萍红玲芬燕彬凤洁梅琳素云莲真环雪荣爱妹香月莺媛瑞凡佳嘉琼勤珍贞莉兰思怡晨宇浩轩子涵欣梓然"
    "文博志远建国庆辉鹏飞俊峰帆爽波海东南西北京沪津渝州深圳广杭宁汉成都安徽福厦门青岛大连沙昆烟台济春哈尔滨长乌鲁木齐"
    "拉萨银川太原合肥温泉珠澳港湾湖河山溪桥城镇岭坡塔堡里斯达德巴塞那瓦亚加洛杉矶纽约旧芝哥伦敦柏慕尼黑米维也纳雅典科"
    "开阪曼谷内买悉墨本士顿利圣保布格奥诺卡奇克多森日赫辛基贝特翰乔治玛彼得迈艾露茜姆珊光丰和吉乐美仁赛泰天阳宜泽小阿"
    "老新古永清水火土星空松竹提查理丹佛密休契弗亨皮埃热若昂费希穆罕默优上重首"
)
"""Of names. What the training invents is made of them, and each has a token of its own."""

SKIES: dict[Lang, tuple[str, ...]] = {
    "en": ("sunny", "rain", "light rain", "snow", "cloudy", "fog", "windy", "clear", "storm", "hail", "overcast"),
    "zh": ("晴", "小雨", "大雨", "雪", "多云", "雾", "大风", "阴", "雷阵雨", "霜"),
}
TROUBLES: dict[Lang, tuple[str, ...]] = {
    "en": ("not found", "timeout", "no data", "service unavailable", "invalid argument", "access denied"),
    "zh": ("未找到", "超时", "没有数据", "服务不可用", "参数无效", "没有权限"),
}


@dataclass(frozen=True)
class Words:
    """Where a conversation takes its words from: those of training, or those kept out of it."""

    split: Split
    rng: random.Random

    def place(self, lang: Lang) -> str:
        return self._word(lang, tuple(PLACES[lang]), HELD_OUT_PLACES[lang])

    def person(self, lang: Lang) -> str:
        return self._word(lang, PEOPLE[lang], HELD_OUT_PEOPLE[lang])

    def numbers(self) -> tuple[int, int]:
        while True:
            pair = self.rng.randrange(2, 100), self.rng.randrange(2, 100)
            if (sum(pair) % 10 == 0) == (self.split == "held_out"):
                return pair

    def phrasing(self, phrasings: Mapping[Lang, Sequence[str]], lang: Lang) -> str:
        """The last two are kept out of training; in there, the others are asked as different people would."""
        if self.split == "held_out":
            return self.rng.choice(phrasings[lang][-2:])
        text = self.rng.choice(phrasings[lang][:-2])
        if self.rng.random() < 0.15:
            text = text.rstrip("?.？。")
        if self.rng.random() < 0.10:
            text = self.rng.choice(OPENERS[lang]) + (text if text.startswith("I ") else text[:1].lower() + text[1:])
        return text

    def _word(self, lang: Lang, known: Sequence[str], held_out: Sequence[str]) -> str:
        if self.split == "held_out":
            return self.rng.choice(held_out)
        return self.rng.choice(known) if self.rng.random() < 0.35 else invented_name(lang, self.rng)


def invented_name(lang: Lang, rng: random.Random) -> str:
    """No model can know it, so it has to be copied."""
    kept_out = (*HELD_OUT_PLACES[lang], *HELD_OUT_PEOPLE[lang])
    while True:
        if lang == "zh":
            name = "".join(rng.choices(CHARACTERS, k=rng.choices((2, 3, 4, 5), weights=(50, 32, 12, 6))[0]))
        else:
            name = " ".join(_invented_word(rng) for _ in range(rng.choices((1, 2, 3), weights=(72, 25, 3))[0]))
        if not any(word in name for word in kept_out):
            return name


def _invented_word(rng: random.Random) -> str:
    syllables = [
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    ]
    if rng.random() < 0.25:
        syllables[1:] = [rng.choice(ENDINGS)]
    return "".join(syllables).capitalize()


# --- The tools --------------------------------------------------------------------------------------------------------

Definition = dict[str, Any]
"""A tool in the shape of the OpenAI API."""
ToolKind = Literal["weather", "time", "calculate", "add", "multiply", "person"]


@dataclass(frozen=True)
class Trade:
    """What a kind of tool is called and takes; which of it, changes from conversation to conversation."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    whole_names: tuple[str, ...]
    descriptions: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]
    types: tuple[str, ...]


LOOK_UP = ("get", "get_current", "fetch", "find", "read", "show", "query", "lookup")
TRADES: dict[ToolKind, Trade] = {
    "weather": Trade(
        LOOK_UP,
        ("weather", "forecast", "temperature", "weather_report"),
        ("weather", "getWeather", "get_weather", "get_weather"),
        ("Current weather of a city.", "Get the weather in a location", "The weather at a place.", "查询城市的天气。"),
        (("city",), ("city",), ("location",), ("place",), ("city_name",)),
        ("string",),
    ),
    "time": Trade(
        LOOK_UP,
        ("time", "local_time", "clock", "time_of_day"),
        ("time", "getTime", "get_time", "get_time"),
        ("Local time of a city.", "Get the current time in a location", "What time it is.", "查询城市的当地时间。"),
        (("city",), ("city",), ("location",), ("place",), ("city_name",)),
        ("string",),
    ),
    "calculate": Trade(
        ("run", "do", "evaluate", "get"),
        ("calculation", "math", "formula", "arithmetic"),
        ("calculate", "calculate", "calculator", "compute", "eval"),
        ("Calculates an expression.", "Evaluate a formula and return the result", "A calculator.", "计算表达式。"),
        (("expression",), ("expression",), ("formula",), ("input",)),
        ("string",),
    ),
    "add": Trade(
        ("do", "get"),
        ("addition", "sum"),
        ("add", "add", "plus", "sum_of_two", "add_numbers"),
        ("Adds two numbers.", "Add a and b.", "The sum of two integers", "两个数相加。"),
        (("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")),
        ("integer", "integer"),
    ),
    "multiply": Trade(
        ("do", "get"),
        ("multiplication", "product"),
        ("multiply", "multiply", "times", "multiply_numbers"),
        ("Multiplies two numbers.", "Multiply a and b.", "The product of two integers", "两个数相乘。"),
        (("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")),
        ("integer", "integer"),
    ),
    "person": Trade(
        ("save", "add", "extract", "store", "create", "record"),
        ("user", "person", "contact", "customer"),
        ("User", "UserInfo", "Person", "UserDetail"),
        ("Saves a person.", "Extract the details of a user", "A person with a name and an age.", "保存一个人的信息。"),
        (("name", "age"),),
        ("string", "integer"),
    ),
}


@dataclass(frozen=True)
class Tool:
    kind: ToolKind
    name: str
    arguments: tuple[str, ...]
    definition: Definition

    def call(self, *values: str | int) -> Message:
        """One entry of a message's `tool_calls`."""
        arguments = dict(zip(self.arguments, values, strict=True))
        return {"type": "function", "function": {"name": self.name, "arguments": arguments}}


def make_tool(kind: ToolKind, rng: random.Random) -> Tool:
    trade = TRADES[kind]
    name = rng.choice(trade.whole_names)
    if rng.random() < 0.5:
        name = f"{rng.choice(trade.verbs)}_{rng.choice(trade.nouns)}"
    arguments = rng.choice(trade.arguments)
    properties: dict[str, Any] = {}
    for argument, type_ in zip(arguments, trade.types, strict=True):
        properties[argument] = {"type": type_}
        if rng.random() < 0.15:
            properties[argument]["description"] = rng.choice((f"The {argument}.", f"The {argument} of it", argument))
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "required": list(arguments)}
    if rng.random() < 0.15:
        parameters["additionalProperties"] = False
    function = {"name": name, "description": rng.choice(trade.descriptions), "parameters": parameters}
    if rng.random() < 0.15:
        del function["description"]
    return Tool(kind, name, arguments, {"type": "function", "function": function})


def make_kit(rng: random.Random) -> tuple[Tool, ...]:
    """One to three tools, in any order; never two that can do the same."""
    counting: tuple[ToolKind, ...] = rng.choice((("calculate",), ("calculate",), ("add",), ("multiply",)))
    kinds: list[ToolKind] = ["weather", "time", "person", *counting]
    chosen = rng.sample(kinds, rng.choices((1, 2, 3), weights=(3, 4, 3))[0])
    return tuple(make_tool(kind, rng) for kind in chosen)


# --- The exchanges ----------------------------------------------------------------------------------------------------

WEATHER: dict[Lang, tuple[str, ...]] = {
    "en": (
        "What is the weather in {}?", "What's the weather like in {}?", "How is the weather in {}?",
        "How is the weather in {} today?", "Weather in {}?", "Tell me the weather in {}.", "Is it raining in {}?",
        "Is it cold in {} today?", "What is the temperature in {}?", "How warm is it in {} right now?",
        "Do I need an umbrella in {}?", "Please check the weather in {}.", "What is the weather in {} right now?",
        "Will it rain in {}?", "{} weather", "What is the weather like in {} today?", "How cold is it in {}?",
    ),
    "zh": (
        "{}的天气怎么样？", "{}今天天气如何？", "查一下{}的天气。", "{}现在冷吗？", "{}下雨了吗？",
        "请告诉我{}的天气。", "今天{}的气温是多少？", "{}天气", "帮我看看{}的天气。", "{}现在多少度？",
        "{}天气怎么样？", "{}会下雨吗？", "{}今天的天气怎么样？", "{}今天冷吗？",
    ),
}  # fmt: skip
TIME: dict[Lang, tuple[str, ...]] = {
    "en": (
        "What time is it in {}?", "What is the time in {}?", "Tell me the time in {}.", "What time is it in {} now?",
        "What is the local time in {}?", "Current time in {}?", "Time in {}?", "What is the current time in {}?",
        "Do you know what time it is in {}?", "Please check the time in {}.", "How late is it in {}?",
        "What is the time in {} right now?", "Please tell me the time in {}.",
    ),
    "zh": (
        "{}现在几点？", "{}几点了？", "查一下{}的时间。", "请告诉我{}的时间。", "现在{}是几点？",
        "{}的当地时间是多少？", "{}时间", "帮我看看{}现在几点。", "{}现在是什么时间？", "{}现在几点了？",
        "请问{}现在几点？",
    ),
}  # fmt: skip
SUMS: dict[Lang, tuple[str, ...]] = {
    "en": (
        "What is {}?", "Calculate {}.", "How much is {}?", "Compute {}.", "{} = ?", "Please calculate {}.", "{}",
        "Tell me what {} is.", "What does {} make?", "What's {}?", "Can you calculate {}?",
    ),
    "zh": (
        "{} 等于多少？", "计算 {}。", "{} 是多少？", "算一下 {}。", "{} 得多少？", "{} 的答案是什么？", "请计算 {}。",
        "{} = ？", "{} 等于几？",
        "帮我算 {}。", "{} 的结果是多少？", "请算一下 {}。",
    ),
}  # fmt: skip
OPERATORS: dict[str, dict[Lang, tuple[str, ...]]] = {
    "+": {"en": ("+", "plus"), "zh": ("+", "加")},
    "-": {"en": ("-", "minus"), "zh": ("-", "减")},
    "*": {"en": ("*", "times"), "zh": ("*", "乘以")},
    "/": {"en": ("/", "divided by"), "zh": ("/", "除以")},
}
PERSON: dict[Lang, tuple[str, ...]] = {
    "en": (
        "{name} is {age} years old.", "{name} is {age}.", "My friend {name} is {age} years old.",
        "My name is {name} and I am {age} years old.", "{name}, {age} years old.",
        "Extract: {name} is {age} years old.", "The customer {name} is {age}.", "{name} turned {age} today.",
        "{name} has been {age} since May.", "Extract from this: {name} is {age}.",
        "Our user {name} is {age} years old.",
        "Extract the details: {name}, {age} years old.",
        "Extract the user: {name} is {age} years old.", "The user {name} is {age} years old.",
        "Extract {name} is {age} years old.",
    ),
    "zh": (
        "{name}今年 {age} 岁。", "{name} {age} 岁。", "我的朋友{name}今年 {age} 岁。", "我叫{name}，今年 {age} 岁。",
        "{name}，{age} 岁。", "提取信息：{name}今年 {age} 岁。", "客户{name}今年 {age} 岁。",
        "{name}今天满 {age} 岁。",
        "请提取：{name}今年 {age} 岁。", "这位用户叫{name}，{age} 岁。",
        "用户{name}今年 {age} 岁。", "提取：{name} {age} 岁。",
    ),
}  # fmt: skip
COUNTRY: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Where is {}?", "Which country is {} in?", "Where is {} on the map?", "{} is in which country?",
        "Do you know where {} is?", "To which country does {} belong?", "Where in the world is {}?",
        "In what country is {}?", "Where can I find {}?",
        "What country is {} in?", "Tell me where {} is.", "City and country: {}", "In which country is {}?",
        "Where is {} located?",
    ),
    "zh": (
        "{}在哪里？", "{}在哪个国家？", "{}是哪个国家的城市？", "你知道{}在哪个国家吗？", "{}是什么国家的？",
        "{}属于哪个国家？", "{}位于哪里？", "城市和国家：{}", "请问{}在哪个国家？",
        "{}在什么国家？",
    ),
}  # fmt: skip
AS_JSON: dict[Lang, tuple[str, ...]] = {
    "en": (" Answer as JSON.", " Answer in JSON.", " As JSON, please.", " Reply with JSON.", " JSON"),
    "zh": ("用 JSON 回答。", "请用 JSON 回答。", "以 JSON 格式回答。", "回答 JSON。"),
}
LARGER: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Which is larger, {} or {}?", "Which number is larger, {} or {}?", "What is larger, {} or {}?",
        "Is {} larger or {}?", "Which is bigger, {} or {}?", "Which one is larger: {} or {}?",
        "Which number is bigger, {} or {}?",
    ),
    "zh": (
        "{} 和 {} 哪个大？", "{} 和 {} 哪个更大？", "{} 与 {} 谁大？", "哪个数大，{} 还是 {}？",
        "是 {} 更大还是 {} 更大？",
        "{} 跟 {} 比，哪个大？", "{} 大还是 {} 大？",
        "{} 与 {} 哪个大？",
    ),
}  # fmt: skip

REPEAT: dict[Lang, tuple[str, ...]] = {
    "en": (
        "Repeat: {}",
        "Repeat after me: {}",
        "Say: {}",
        "Please repeat: {}",
        "Echo: {}",
        "Copy: {}",
        "Please say: {}",
    ),
    "zh": ("重复：{}", "跟我说：{}", "请说：{}", "照着说：{}", "复述：{}", "请重复：{}", "请跟我说：{}"),
}

LIST: dict[Lang, tuple[str, ...]] = {
    "en": ("As a JSON list: {}", "JSON list: {}", "Make a JSON list: {}", "List as JSON: {}", "A JSON list of {}"),
    "zh": ("JSON 列表：{}", "做成 JSON 列表：{}", "用 JSON 列出：{}", "写成 JSON 列表：{}", "列成 JSON：{}"),
}


@dataclass(frozen=True)
class Exchange:
    """A question and all that follows until it is answered."""

    lang: Lang
    question: str
    answer: str
    thought: str
    """Before the calls, if there are any; before the answer then come others."""
    calls: tuple[Message, ...] = ()
    results: tuple[str, ...] = ()

    def messages(self, *, thinking: bool) -> list[Message]:
        thoughts = (self.thought, RESULT_THOUGHT[self.lang]) if thinking else ("", "")
        if not self.calls:
            return [user(self.question), assistant(self.answer, reasoning=thoughts[0])]
        return [
            user(self.question),
            assistant(None, reasoning=thoughts[0], tool_calls=self.calls),
            *({"role": "tool", "content": result} for result in self.results),
            assistant(self.answer, reasoning=thoughts[1]),
        ]


RESULT_THOUGHT: dict[Lang, str] = {"en": "The result is there. I pass it on.", "zh": "结果有了，可以回答。"}


def use(tool: Tool, lang: Lang, words: Words) -> Exchange:
    """A question for the tool."""
    if tool.kind == "person":
        return _introduce(tool, lang, words)
    if tool.kind in ("weather", "time"):
        return _look_up(tool, lang, words)
    return _count(tool, lang, words)


def _look_up(tool: Tool, lang: Lang, words: Words) -> Exchange:
    rng = words.rng
    places = [words.place(lang)]
    if rng.random() < 0.12:
        places.append(words.place(lang))
    joined = {"en": " and ", "zh": "和"}[lang].join(places)
    question = words.phrasing(WEATHER if tool.kind == "weather" else TIME, lang).format(joined)
    look = _weather if tool.kind == "weather" else _time
    found = [look(place, lang, rng) for place in places]
    thought = {
        "en": f"I need the {tool.kind} in {joined}. A tool can tell.",
        "zh": f"需要{joined}的{'天气' if tool.kind == 'weather' else '时间'}，可以用工具查。",
    }[lang]
    return Exchange(
        lang,
        question,
        {"en": " ", "zh": ""}[lang].join(answer for _, answer in found),
        thought,
        tuple(tool.call(place) for place in places),
        tuple(result for result, _ in found),
    )


def _weather(place: str, lang: Lang, rng: random.Random) -> tuple[str, str]:
    """A result and the sentence that the model makes of it."""
    if rng.random() < 0.08:
        return _trouble(lang, rng)
    sky, degrees = rng.choice(SKIES[lang if rng.random() < 0.8 else "en"]), rng.randrange(-15, 40)
    plain = f"{sky}, {degrees} °C"
    pairs = [(rng.choice(("condition", "weather", "sky")), sky), (rng.choice(("temperature", "temp")), degrees)]
    rng.shuffle(pairs)
    result = plain if rng.random() < 0.5 else _json(dict(pairs))
    return result, {"en": f"The weather in {place}: {plain}.", "zh": f"{place}的天气：{plain}。"}[lang]


def _time(place: str, lang: Lang, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.08:
        return _trouble(lang, rng)
    time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    result = time if rng.random() < 0.5 else _json({rng.choice(("time", "local_time", "now")): time})
    return result, {"en": f"It is {time} in {place}.", "zh": f"{place}现在是 {time}。"}[lang]


def _trouble(lang: Lang, rng: random.Random) -> tuple[str, str]:
    trouble = rng.choice(TROUBLES[lang])
    result = f"Error: {trouble}" if rng.random() < 0.5 else _json({"error": trouble})
    return result, {"en": f"The tool failed: {trouble}.", "zh": f"工具出错：{trouble}。"}[lang]


def _count(tool: Tool, lang: Lang, words: Words) -> Exchange:
    rng = words.rng
    a, b = words.numbers()
    symbol = {"add": "+", "multiply": "*"}.get(tool.kind) or rng.choice(tuple(OPERATORS))
    asked = f"{a} {rng.choice(OPERATORS[symbol][lang])} {b}"
    value = {"+": a + b, "-": a - b, "*": a * b, "/": round(a / b, 2)}[symbol]
    question = words.phrasing(SUMS, lang).format(asked)
    formula = f"{a} {symbol} {b}"
    answer = {"en": f"{formula} = {value}.", "zh": f"{formula} = {value}。"}
    thought = {"en": f"I need {formula}. A tool can tell.", "zh": f"需要 {formula}，可以用工具算。"}
    call = tool.call(formula) if tool.kind == "calculate" else tool.call(a, b)
    result = str(value) if rng.random() < 0.6 else _json({rng.choice(("result", "value")): value})
    return Exchange(lang, question, answer[lang], thought[lang], (call,), (result,))


def _introduce(tool: Tool, lang: Lang, words: Words) -> Exchange:
    name, age, question = _person(lang, words)
    answer = {"en": f"Done: {name}, {age} years old.", "zh": f"好了：{name}，{age} 岁。"}
    thought = {
        "en": f"This is about {name}. A tool takes it.",
        "zh": f"这是{name}的信息，可以交给工具。",
    }
    results = ("ok", "saved", "true", "done", _json({"ok": True}), _json({"id": words.rng.randrange(1, 100)}))
    result = words.rng.choice(results)
    return Exchange(lang, question, answer[lang], thought[lang], (tool.call(name, age),), (result,))


def _person(lang: Lang, words: Words) -> tuple[str, int, str]:
    name, (age, _) = words.person(lang), words.numbers()
    return name, age, words.phrasing(PERSON, lang).format(name=name, age=age)


def extract_person(lang: Lang, words: Words) -> Exchange:
    """Without a tool for it, somebody's name and age become JSON."""
    name, age, question = _person(lang, words)
    wish = words.rng.choice(AS_JSON[lang]) if words.rng.random() < 0.7 else ""
    thought = {"en": f"The name is {name}, the age is {age}.", "zh": f"名字是{name}，年龄是 {age}。"}[lang]
    return Exchange(lang, question + wish, _json({"name": name, "age": age}), thought)


def locate(lang: Lang, words: Words) -> Exchange:
    """The country of a city: a sentence, or JSON where the user wants it. The cities are those of training."""
    place, country = words.rng.choice(tuple(PLACES[lang].items()))
    as_json = words.rng.random() < 0.6
    question = words.phrasing(COUNTRY, lang).format(place) + (words.rng.choice(AS_JSON[lang]) if as_json else "")
    sentence = {"en": f"{place} is in {country}.", "zh": f"{place}在{country}。"}[lang]
    thought = {"en": f"The city is {place}, the country is {country}.", "zh": f"城市是{place}，国家是{country}。"}[lang]
    answer = _json({"city": place, "country": country.removeprefix("the ")}) if as_json else sentence
    return Exchange(lang, question, answer, thought)


def compare(lang: Lang, words: Words) -> Exchange:
    """Which of two numbers is larger; their tens differ, and the thoughts look at those."""
    a, b = words.numbers()
    while a // 10 == b // 10 or min(a, b) < 10:
        a, b = words.numbers()
    more, less = max(a, b), min(a, b)
    answer = {"en": f"{more} is larger than {less}.", "zh": f"{more} 比 {less} 大。"}
    thought = {
        "en": f"The tens are {a // 10} and {b // 10}, so {more} is larger.",
        "zh": f"十位是 {a // 10} 和 {b // 10}，所以 {more} 更大。",
    }
    return Exchange(lang, words.phrasing(LARGER, lang).format(a, b), answer[lang], thought[lang])


def repeat(lang: Lang, words: Words, known: Sequence[str]) -> Exchange:
    """Nothing else teaches as fast to copy what stands in the prompt, which all the others need."""
    parts = [
        words.rng.choice((words.person(lang), words.place(lang), *words.rng.choices(known, k=3)))
        if words.rng.random() < 0.95
        else str(words.numbers()[0])
        for _ in range(words.rng.randrange(2, 12))
    ]
    comma = {"en": ", ", "zh": "，"}[lang]
    if words.rng.random() < 0.5:
        thought = {"en": "I only have to make a list of it.", "zh": "列出来就好。"}[lang]
        return Exchange(lang, words.phrasing(LIST, lang).format(comma.join(parts)), _json(parts), thought)
    text = words.rng.choice((comma, " ", {"en": " and ", "zh": "和"}[lang])).join(parts)
    thought = {"en": "I only have to repeat it.", "zh": "照着说就好。"}[lang]
    return Exchange(lang, words.phrasing(REPEAT, lang).format(text), text, thought)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- The conversations ------------------------------------------------------------------------------------------------

OUT_OF_SCOPE = "out-of-scope"


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    tools: tuple[Definition, ...]


class Teacher:
    """Makes conversations, of whatever topics and words it is given.

    Args:
        topics: the dialogues, for questions that need no tool.
        words: of training, or those kept out of it.
    """

    def __init__(self, topics: Sequence[Topic], words: Words) -> None:
        self.words, self._rng = words, words.rng
        self._topics = {lang: [t for t in topics if t.lang == lang and t.after is None] for lang in LANGS}
        self._known = {lang: _known_words(self._topics[lang], lang) for lang in LANGS}
        self._strange = {topic.lang: topic.answer for topic in topics if topic.id == OUT_OF_SCOPE}

    def conversation(self) -> Conversation:
        """With tools or without, thinking or not, with a system prompt or without."""
        make = self._rng.choices((self._with_tools, self._without_tools), weights=(45, 55))[0]
        tools, exchanges = make()
        thinking = self._rng.random() < (0.4 if tools else 0.3)
        messages = [message for exchange in exchanges for message in exchange.messages(thinking=thinking)]
        if self._rng.random() < 0.25:
            messages.insert(0, {"role": "system", "content": self._rng.choice(SYSTEM_PROMPTS)})
        return Conversation(tuple(messages), _definitions(tools))

    def something_to_repeat(self) -> Conversation:
        lang = self._lang()
        return Conversation(tuple(repeat(lang, self.words, self._known[lang]).messages(thinking=False)), ())

    def _with_tools(self) -> tuple[tuple[Tool, ...], list[Exchange]]:
        tools, lang = make_kit(self._rng), self._lang()
        exchanges = [use(self._rng.choice(tools), lang, self.words) for _ in range(self._rng.choice((1, 2, 3, 4)))]
        if self._rng.random() < 0.35:
            exchanges.insert(self._rng.randrange(len(exchanges) + 1), self.no_tool_needed(lang))
            exchanges = exchanges[-4:]
        if self._rng.random() < 0.05 and lang in self._strange and _kinds_missing(tools):
            exchanges = [self._tool_missing(lang, tools)]
        return tools, exchanges

    def _without_tools(self) -> tuple[tuple[Tool, ...], list[Exchange]]:
        lang = self._lang()
        makers: tuple[Callable[[], Exchange], ...] = (
            lambda: locate(lang, self.words),
            lambda: extract_person(lang, self.words),
            lambda: compare(lang, self.words),
            lambda: repeat(lang, self.words, self._known[lang]),
            lambda: self.no_tool_needed(lang),
            lambda: self._tool_missing(lang, ()) if lang in self._strange else compare(lang, self.words),
        )
        made = self._rng.choices(makers, weights=(28, 18, 13, 18, 19, 4), k=self._rng.choice((1, 1, 2)))
        return (), [make() for make in made]

    def no_tool_needed(self, lang: Lang) -> Exchange:
        """A question that the model knows the answer to."""
        known = self._topics[lang] or self._topics["en"]
        topic = self._rng.choice(known)
        while topic.id == OUT_OF_SCOPE and len(known) > 1:
            topic = self._rng.choice(known)
        text = self._rng.choice(topic.texts(self.words.split))
        question = vary(text, lang, self._rng) if self.words.split == "train" else text
        return Exchange(lang, question, topic.answer, KNOWN_THOUGHT[lang])

    def _tool_missing(self, lang: Lang, tools: Sequence[Tool]) -> Exchange:
        """A question for a tool that is not among those given."""
        asked = use(make_tool(self._rng.choice(_kinds_missing(tools)), self._rng), lang, self.words)
        return Exchange(lang, asked.question, self._strange[lang], STRANGE_THOUGHT[lang])

    def _lang(self) -> Lang:
        return self._rng.choice(LANGS)


def _kinds_missing(tools: Sequence[Tool]) -> list[ToolKind]:
    """What somebody could ask for and none of the tools can do."""
    given = {tool.kind for tool in tools}
    kinds: list[ToolKind] = [kind for kind in ("weather", "time") if kind not in given]
    return kinds if given & {"calculate", "add", "multiply"} else [*kinds, "calculate"]


def _known_words(topics: Sequence[Topic], lang: Lang) -> list[str]:
    said = " ".join(topic.answer for topic in topics) or "-"
    return said.split() if lang == "en" else [said[at : at + 2].strip() or "-" for at in range(0, len(said), 2)]


KNOWN_THOUGHT: dict[Lang, str] = {"en": "I know this. No tool is needed.", "zh": "这个我知道，不需要工具。"}
STRANGE_THOUGHT: dict[Lang, str] = {"en": "I have no tool for this.", "zh": "没有合适的工具。"}


# --- The texts of the tokenizer ---------------------------------------------------------------------------------------


OFTEN = 30  # enough for a character to become a token


def common_texts() -> list[str]:
    """What the conversations have in common, and Chinese characters.

    English names stay out, so that they are spelled in pieces.
    """
    rng = random.Random(0)
    tools = [make_tool(kind, rng) for kind in TRADES for _ in range(6)]
    phrasings = [text for texts in (WEATHER, TIME, SUMS, COUNTRY, LARGER) for lang in LANGS for text in texts[lang]]
    return [
        *(_json(tool.definition["function"]) for tool in tools),
        *(_json(tool.call(*("" for _ in tool.arguments))["function"]) for tool in tools),
        *(text.replace("{}", "") for text in phrasings),
        *(text.format(name="", age="") for lang in LANGS for text in PERSON[lang]),
        *(f"The weather in : {sky}, °C." for lang in LANGS for sky in SKIES[lang]),
        *(_json({"city": "", "country": country}) for lang in LANGS for country in PLACES[lang].values()),
        *RESULT_THOUGHT.values(),
        *[CHARACTERS] * OFTEN,
    ]


# --- The questions of the measurement ---------------------------------------------------------------------------------

TaskSet = Literal["tool_call", "tool_answer", "no_tool", "json", "thinking", "thinking_call"]
TASK_SETS: tuple[TaskSet, ...] = ("tool_call", "tool_answer", "no_tool", "json", "thinking", "thinking_call")
ASKED = 200


def task_questions(topics: Sequence[Topic], task: TaskSet, lang: Lang) -> list[Question]:
    """Always the same ones, with places, names, numbers and phrasings that are kept out of training."""
    words = Words("held_out", random.Random(f"{task} {lang}"))
    teacher = Teacher(topics, words)
    return [_question(teacher, words, task, lang, number) for number in range(ASKED)]


def _question(teacher: Teacher, words: Words, task: TaskSet, lang: Lang, number: int) -> Question:
    if task == "json":
        return _last(lang, (locate if number % 2 else extract_person)(lang, words))
    if task == "thinking":
        makers = (compare, locate, extract_person)
        known = teacher.no_tool_needed(lang) if number % 2 else makers[number // 2 % 3](lang, words)
        return _last(lang, known, thinking=True)
    tools = make_kit(words.rng)
    if task == "no_tool":
        return _last(lang, teacher.no_tool_needed(lang), tools)
    exchange = use(words.rng.choice(tools), lang, words)
    if task == "tool_answer":
        return _last(lang, exchange, tools)
    return _first(lang, exchange, tools, thinking=task == "thinking_call")


def _first(lang: Lang, exchange: Exchange, tools: tuple[Tool, ...], *, thinking: bool) -> Question:
    asked, reply, *_ = exchange.messages(thinking=thinking)
    return Question(lang, (asked,), reply, _definitions(tools), thinking)


def _last(lang: Lang, exchange: Exchange, tools: tuple[Tool, ...] = (), *, thinking: bool = False) -> Question:
    *before, reply = exchange.messages(thinking=thinking)
    return Question(lang, tuple(before), reply, _definitions(tools), thinking)


def _definitions(tools: Sequence[Tool]) -> tuple[Definition, ...]:
    return tuple(tool.definition for tool in tools)
