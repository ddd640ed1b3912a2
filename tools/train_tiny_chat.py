"""Trains `models/tiny-chat`: the small checkpoint that lets the whole stack run offline.

Run it from the root of the repository: `python -m tools.train_tiny_chat`. Read it from the top: the tokenizer, the
batches, the training loop, the measurement, the files, the command line. What the model learns is the business of
`tiny_chat_dialogues.py` and, for tools, JSON and thinking, of `tiny_chat_tasks.py`; what it begins with, that of
`tiny_chat_induction.py`. Everything random comes from one seed.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tools.tiny_chat_dialogues import (
    LANGS,
    SPLITS,
    Lang,
    Message,
    Question,
    Split,
    Topic,
    epoch_of_dialogues,
    load_topics,
    questions,
)
from tools.tiny_chat_induction import begin_with_copying, twins
from tools.tiny_chat_tasks import TASK_SETS, TaskSet, Teacher, Words, common_texts, task_questions

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "tiny-chat"
DATA_NAME = "dialogues.jsonl"
CARD_BEGIN, CARD_END = "<!-- figures: begin, written by tools/train_tiny_chat.py -->", "<!-- figures: end -->"

NOT_SCORED = -100  # the label that cross_entropy ignores

# --- The tokenizer ----------------------------------------------------------------------------------------------------

VOCAB_SIZE = 3456
PAD, BEGIN, SYSTEM, USER, ASSISTANT, END, TOOL = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|begin|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|tool|>",
)
THINK, THINK_END, *_ = MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
"""Tokens, but not special ones: they belong to the text of an answer, from which `RESPONSE_TEMPLATE` takes them."""

# A Chinese character or a digit is a piece of its own. Words take their leading space along, but not
# those with a capital: a name has the same tokens behind a space and behind a quotation mark, so it can be copied.
PIECES = (
    r"\p{Han}|\p{N}|\p{Lu}\p{Ll}(?:(?!\p{Han})[\p{L}\p{M}])*| ?(?!\p{Lu}\p{Ll})(?:(?!\p{Han})[\p{L}\p{M}])+"
    r"| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
)

# Between the turns stands nothing and nothing is trimmed: a turn and its answer are an exact prefix of the next turn's
# prompt, which is what lets the prefix cache serve it. Only thoughts go: those before the last question are dropped.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
  {%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
    {{- raise_exception('The roles are system, user, assistant and tool, not ' + message.role) -}}
  {%- endif -%}
  {%- if message.role == 'user' -%}
    {%- set last.question = loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- if tools -%}
  {{- '<|system|>' -}}
  {%- if messages and messages[0].role == 'system' and messages[0].content -%}
    {{- messages[0].content + '\\n\\n' -}}
  {%- endif -%}
  {{- '<tools>' -}}
  {%- for tool in tools -%}
    {%- set function = tool.function or tool -%}
    {{- '\\n{"name": ' + function.name | tojson -}}
    {%- if function.description -%}
      {{- ', "description": ' + function.description | tojson -}}
    {%- endif -%}
    {%- if function.parameters -%}
      {{- ', "parameters": ' + function.parameters | tojson -}}
    {%- endif -%}
    {{- '}' -}}
  {%- endfor -%}
  {{- '\\n</tools>' + eos_token -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message.content or '' -%}
  {%- if message.role == 'assistant' -%}
    {%- set reasoning = message.reasoning or message.reasoning_content or '' -%}
    {%- if '</think>' in content -%}
      {%- set reasoning = reasoning or content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|assistant|>' -}}
    {%- if reasoning and loop.index0 > last.question -%}
      {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- content -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {%- if content or not loop.first -%}
        {{- '\\n' -}}
      {%- endif -%}
      {{- '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' -}}
      {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- eos_token -}}
  {%- elif message.role == 'tool' -%}
    {{- '<|tool|><tool_response>\\n' + content + '\\n</tool_response>' + eos_token -}}
  {%- elif not (tools and loop.first and message.role == 'system') -%}
    {{- '<|' + message.role + '|>' + content + eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
  {%- if enable_thinking -%}
    {{- '<think>\\n' -}}
  {%- endif -%}
{%- endif -%}
"""

# How transformers takes an answer apart, `tokenizer.parse_response`; the same as its own for Qwen, but for the ends.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<\|end\|>", "content": "text"},
    },
}


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that every UTF-8 text has tokens and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKERS),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.response_template = RESPONSE_TEMPLATE
    return fast


def render(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
    thinking: bool = False,
) -> list[int]:
    """Token ids of a conversation; with `prompt`, up to where the assistant starts to speak, or to think."""
    text = tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=prompt,
        enable_thinking=thinking,
    )
    return cast("list[int]", tokenizer.encode(cast(str, text), add_special_tokens=False))


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return cast(int, tokenizer.convert_tokens_to_ids(token))


def labels_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that the assistant says, `<|end|>` included; NOT_SCORED elsewhere.

    `<think>` is not scored: the template writes it where the assistant is to think.
    """
    speaks, end, think = (id_of(tokenizer, token) for token in (ASSISTANT, END, THINK))
    labels, inside = [], False
    for token in ids:
        labels.append(token if inside and token != think else NOT_SCORED)
        inside = token == speaks or (inside and token != end)
    return labels


# --- The batches -----------------------------------------------------------------------------------------------------

VARIED_SHARE, REPEATS_SHARE = 0.75, 0.2
CUT_SHARE, DIALOGUE_TOKENS, TASK_TOKENS = 0.8, 12, 32
TASKS_AT_ONCE = 128

Batch = tuple[torch.Tensor, torch.Tensor]
"""Ids and labels, each [conversations, length]."""


def batches(
    topics: Sequence[Topic], tokenizer: PreTrainedTokenizerFast, tokens: int, rng: random.Random, *, varied: bool
) -> Iterator[Batch]:
    """The dialogues, endlessly."""
    while True:
        dialogues = epoch_of_dialogues(topics, rng, varied=varied)
        encoded = [render(tokenizer, dialogue, prompt=False) for dialogue in dialogues]
        encoded = [_maybe_cut(ids, DIALOGUE_TOKENS, tokenizer, rng) for ids in encoded]
        yield from _grouped(encoded, tokenizer, tokens, rng)


def task_batches(
    topics: Sequence[Topic], tokenizer: PreTrainedTokenizerFast, tokens: int, rng: random.Random, *, repeats: bool
) -> Iterator[Batch]:
    """Tools, JSON and thinking, endlessly; or only what has to be repeated."""
    teacher = Teacher(topics, Words("train", rng))
    make = teacher.something_to_repeat if repeats else teacher.conversation
    while True:
        made = [make() for _ in range(TASKS_AT_ONCE)]
        encoded = [render(tokenizer, one.messages, prompt=False, tools=one.tools) for one in made]
        encoded = [_maybe_cut(ids, TASK_TOKENS, tokenizer, rng) for ids in encoded]
        yield from _grouped(encoded, tokenizer, tokens, rng)


def _grouped(
    encoded: Sequence[list[int]], tokenizer: PreTrainedTokenizerFast, tokens: int, rng: random.Random
) -> Iterator[Batch]:
    """Batches of about `tokens` tokens, of similar lengths, in any order."""
    groups: list[list[list[int]]] = [[]]
    for ids in sorted(encoded, key=len):
        if groups[-1] and (len(groups[-1]) + 1) * len(ids) > tokens:
            groups.append([])
        groups[-1].append(ids[:2048])
    rng.shuffle(groups)
    for group in groups:
        yield pad(group, [labels_of(ids, tokenizer) for ids in group], tokenizer)


def course(
    topics: Sequence[Topic], tokenizer: PreTrainedTokenizerFast, sizes: BatchTokens, steps: int, seed: int
) -> Iterator[tuple[Batch, ...]]:
    """What each step of a whole training learns from: dialogues, and tasks if there is room for them.

    First the questions of the dialogues are varied, at the end they come as they are written. The tasks begin with
    copying, which all of them need.
    """
    rng, task_rng = random.Random(seed), random.Random(seed)
    varied = batches(topics, tokenizer, sizes.dialogues, rng, varied=True)
    plain = batches(topics, tokenizer, sizes.dialogues, rng, varied=False)
    dialogues = chain(islice(varied, int(steps * VARIED_SHARE)), plain)
    if not sizes.tasks:
        return ((batch,) for batch in dialogues)
    repeats = task_batches(topics, tokenizer, sizes.tasks, task_rng, repeats=True)
    tasks = task_batches(topics, tokenizer, sizes.tasks, task_rng, repeats=False)
    return zip(dialogues, chain(islice(repeats, int(steps * REPEATS_SHARE)), tasks), strict=False)


@dataclass(frozen=True)
class BatchTokens:
    """Tokens in one step."""

    dialogues: int
    tasks: int


def _maybe_cut(ids: list[int], keep: int, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[int]:
    """Often keeps only the head of the last answer: choosing the answer is hard to learn, reciting it is easy."""
    if rng.random() >= CUT_SHARE:
        return ids
    begins = {id_of(tokenizer, token) for token in (ASSISTANT, THINK_END)}
    last = max(position for position, token in enumerate(ids) if token in begins)
    return ids[: last + 1 + keep]


def pad(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerFast) -> Batch:
    """Pads on the right: causal attention then needs no mask, and padding is never scored."""
    width = max(map(len, ids))
    filler = id_of(tokenizer, PAD)
    padded_ids = torch.tensor([[*row, *[filler] * (width - len(row))] for row in ids])
    padded_labels = torch.tensor([[*row, *[NOT_SCORED] * (width - len(row))] for row in labels])
    return padded_ids, padded_labels


# --- The training loop ------------------------------------------------------------------------------------------------

PEAK_LEARNING_RATE = 2.5e-3
WARMUP_SHARE, WEIGHT_DECAY, DROPOUT = 0.04, 0.1, 0.1
AVERAGED_FROM = 0.67  # of the steps: the weights after each of the later ones count alike in the result
ROPE_THETA = 10000.0


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    begin_with_copying(model, ROPE_THETA, twins(tokenizer.get_vocab()))
    return model


def train(model: LlamaForCausalLM, feed: Iterator[tuple[Batch, ...]], steps: int) -> None:
    """One warm-up and one cosine; leaves the mean of the late weights in `model`."""
    mean = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
    drop = model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: F.dropout(out, DROPOUT))
    optimizers = optimizers_for(model)
    model.train()
    losses: list[list[float]] = []
    started, seen, show_every = time.monotonic(), 0, max(1, steps // 60)
    for step in range(steps):
        parts = next(feed)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LEARNING_RATE * schedule(step, steps)
        losses.append(learn(model, parts))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step >= int(steps * AVERAGED_FROM):
            mean.update_parameters(model)
        seen += sum(ids.numel() for ids, _ in parts)
        if (step + 1) % show_every == 0 or step + 1 == steps:
            _show_progress(step + 1, steps, losses[-show_every:], seen, time.monotonic() - started)
    drop.remove()
    model.load_state_dict(mean.module.state_dict())
    model.train(mode=False)


def optimizers_for(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, which needs far fewer steps here than AdamW; AdamW for all the rest."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: linear up, cosine down."""
    warmup = max(1, int(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def learn(model: LlamaForCausalLM, parts: Sequence[Batch]) -> list[float]:
    """Adds up the gradients of the parts as if they were one batch; returns the mean cross-entropy of each."""
    counts = [int((labels != NOT_SCORED).sum()) for _, labels in parts]
    losses = []
    for (ids, labels), count in zip(parts, counts, strict=True):
        logits, targets = scored_logits(model, ids, labels)
        loss = F.cross_entropy(logits, targets)
        (loss * count / sum(counts)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    return losses


def scored_logits(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> Batch:
    """Logits [scored tokens, vocabulary] and their targets [scored tokens]; the others are not projected at all."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    scored = labels[:, 1:] != NOT_SCORED
    return model.lm_head(hidden[scored]), labels[:, 1:][scored]


def _show_progress(step: int, steps: int, recent: Sequence[Sequence[float]], seen: int, seconds: float) -> None:
    left = seconds / step * (steps - step)
    losses = "  ".join(f"{sum(part) / len(part):6.4f}" for part in zip(*recent, strict=True))
    print(f"step {step:5d}/{steps}  loss {losses}  {seen / seconds:6.0f} tokens/s  {left:4.0f} s left", flush=True)


# --- The measurement --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def exact_matches(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Question], batch_tokens: int = 8192
) -> list[bool]:
    """Whether greedy decoding gives each answer, word for word, and then stops.

    Greedy decoding says the answer exactly when, after every true prefix of it, the likeliest next token is the true
    one. So one forward pass over question and answer decides it, without decoding token by token.
    """
    rows = []
    for question in asked:
        tools, thinking = question.tools, question.thinking
        prompt = render(tokenizer, question.messages, prompt=True, tools=tools, thinking=thinking)
        ids = render(tokenizer, (*question.messages, question.reply), prompt=False, tools=tools)
        rows.append((ids, [NOT_SCORED] * len(prompt) + ids[len(prompt) :]))
    results = [False] * len(rows)
    for group in _similar_lengths([len(ids) for ids, _ in rows], batch_tokens):
        batch = pad([rows[row][0] for row in group], [rows[row][1] for row in group], tokenizer)
        logits, targets = scored_logits(model, *batch)
        right = iter((logits.argmax(-1) == targets).tolist())
        for row in group:
            answer = [next(right) for label in rows[row][1] if label != NOT_SCORED]
            results[row] = all(answer)
    return results


def _similar_lengths(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Row numbers in groups of at most about `tokens` padded tokens, shortest rows first."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[row] > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@dataclass(frozen=True)
class Score:
    what: Split | TaskSet
    lang: Lang
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked


def measure(folder: Path, topics: Sequence[Topic]) -> list[Score]:
    """Scores the files in `folder`, as any user of them would load them."""
    model, tokenizer = load(folder)
    asked: list[tuple[Split | TaskSet, Lang, list[Question]]] = []
    asked += [(split, lang, questions(topics, split, lang)) for split in SPLITS for lang in LANGS]
    asked += [(task, lang, task_questions(topics, task, lang)) for task in TASK_SETS for lang in LANGS]
    scores = []
    for what, lang, chosen in asked:
        results = exact_matches(model, tokenizer, chosen)
        scores.append(Score(what, lang, sum(results), len(results)))
    return scores


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    model = cast(LlamaForCausalLM, AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    model.train(mode=False)
    return model, cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))


# --- The files --------------------------------------------------------------------------------------------------------


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as float16 to halve the file; the config says float32, which is how they run by default."""
    weights = {name: weight.detach().half().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    config.architectures, config.attention_dropout, config.use_cache = ["LlamaForCausalLM"], 0.0, True
    config.dtype = torch.float32
    config.save_pretrained(folder)
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    generation = GenerationConfig(**ends, pad_token_id=config.pad_token_id)
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


FIGURES: dict[Split | TaskSet, str] = {
    "train": "questions trained on",
    "held_out": "phrasings kept out of training",
    "tool_call": "tool calls",
    "tool_answer": "answers from the results of tools",
    "no_tool": "questions that need none of the tools given",
    "json": "answers as JSON",
    "thinking": "thoughts and answer",
    "thinking_call": "thoughts and tool calls",
}


def figures(scores: Sequence[Score], model: LlamaForCausalLM, topics: Sequence[Topic], run: RunFacts) -> str:
    """The model card's block of numbers, in Markdown."""
    lines = ["| greedy exact match | English | Chinese |", "| --- | --- | --- |"]
    for what, name in FIGURES.items():
        cells = [f"{s.share:.1%} ({s.right} of {s.asked})" for lang in LANGS for s in scores if _is(s, what, lang)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    answers = [sum(topic.lang == lang for topic in topics) for lang in LANGS]
    lines += [
        "",
        f"- Parameters: {sum(weight.numel() for weight in model.parameters()):,}",
        f"- Answers: {answers[0]} in English, {answers[1]} in Chinese",
        f"- Training: {run.steps} steps, {run.minutes:.1f} minutes on {run.threads} CPU threads, seed {run.seed}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class RunFacts:
    steps: int
    minutes: float
    threads: int
    seed: int


def _is(score: Score, what: Split | TaskSet, lang: Lang) -> bool:
    return (score.what, score.lang) == (what, lang)


def write_card(card: Path, block: str) -> None:
    """Replaces the generated block of the card and leaves the rest as it is."""
    text = card.read_text(encoding="utf-8")
    before, rest = text.split(CARD_BEGIN)
    after = rest.split(CARD_END)[1]
    write_atomically(card, f"{before}{CARD_BEGIN}\n{block}\n{CARD_END}{after}".encode())


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


# --- The command line -------------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the tiny-chat checkpoint on its dialogues, measure it, and write it with its model card.",
        epilog="example: python -m tools.train_tiny_chat --steps 300 --out my-chat",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=MODEL_DIR / DATA_NAME, help="dialogues, one topic per line")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder for the checkpoint; its README is updated")
    parser.add_argument("--steps", type=int, default=2600, help="optimiser steps; fewer is faster and knows less")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of dialogues in one step")
    parser.add_argument("--task-tokens", type=int, default=2048, help="tokens of tools, JSON and thinking beside them")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the result depends on it in the last bits")
    parser.add_argument("--seed", type=int, default=20, help="seed of everything random")
    parser.add_argument("--measure-only", action="store_true", help="only score the checkpoint that is in --out")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    topics = load_topics(arguments.data)
    if arguments.measure_only:
        report(measure(arguments.out, topics))
        return 0
    started = time.monotonic()
    torch.manual_seed(arguments.seed)
    said = [text for topic in topics for text in (*topic.texts("train"), topic.answer)]
    tokenizer = train_tokenizer([*said, *common_texts()])
    model = new_model(tokenizer)
    sizes = BatchTokens(arguments.batch_tokens, arguments.task_tokens)
    feed = course(topics, tokenizer, sizes, arguments.steps, arguments.seed)
    train(model, feed, arguments.steps)
    minutes = (time.monotonic() - started) / 60
    run = RunFacts(arguments.steps, minutes, arguments.threads, arguments.seed)
    publish(model, tokenizer, topics, arguments.out, run)
    return 0


def publish(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, topics: Sequence[Topic], out: Path, run: RunFacts
) -> None:
    """Measures the files as written, then moves them into place one by one."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tiny-chat-") as name:
        fresh = Path(name)
        save(model, tokenizer, fresh)
        scores = measure(fresh, topics)
        report(scores)
        for file in sorted(fresh.iterdir()):
            file.chmod(0o644)
            file.replace(out / file.name)
    card = out / "README.md"
    if card.exists():
        write_card(card, figures(scores, model, topics, run))


def report(scores: Sequence[Score]) -> None:
    for score in scores:
        print(f"exact match  {score.what:11}  {score.lang}  {score.share:6.1%}  ({score.right} of {score.asked})")


if __name__ == "__main__":
    sys.exit(main())
