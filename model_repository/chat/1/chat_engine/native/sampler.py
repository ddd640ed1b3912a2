"""Next tokens for a batch of rows, each row by its own parameters, whatever stands beside it.

The order follows transformers: bias, penalties, bans, the grammar, temperature, top-k, top-p, min-p, then one draw. The
draw inverts the cumulative distribution at a number that depends on the request's seed and the token's position alone,
so a seed gives the same text in any batch and after a preemption.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chat_engine.answering.guide import Guide
from chat_engine.answering.telling import Logprobs
from chat_engine.native.token_rules import Ngrams, TokenRules
from chat_engine.request import SamplingParams

# Candidates looked at first when a row is cut by top-k, top-p or min-p; the whole vocabulary is sorted only when the
# cut lies beyond them.
_CANDIDATES = 1024
_NO_RULES = TokenRules()
NO_TOKEN = -1
"""Of a row for which the model gave no numbers."""
# Rows of logits that `score` works on at a time: it needs several times their memory.
_SCORED_AT_ONCE = 64


@dataclass
class SamplingState:
    """What one row's sampling depends on: its parameters, and the tokens so far.

    Attributes:
        stop_ids: tokens that end the answer, banned until `min_tokens` have been made.
        rules: what the checkpoint rules out.
        prompt: distinct prompt tokens; empty unless the repetition penalty is on.
        output: how often each token has been made; kept only when a penalty is on.
        guide: what the answer must follow. It hears of tokens from others.
    """

    params: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    rules: TokenRules = _NO_RULES
    ngrams: Ngrams | None = None
    prompt: frozenset[int] = frozenset()
    output: Counter[int] = field(default_factory=Counter)
    num_output: int = 0
    guide: Guide | None = None

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        seed: int,
        stop_ids: frozenset[int],
        prompt_ids: tuple[int, ...],
        rules: TokenRules = _NO_RULES,
    ) -> SamplingState:
        """The state before the first token of an answer."""
        prompt = frozenset(prompt_ids) if params.repetition_penalty != 1 else frozenset()
        ngrams = Ngrams(rules.no_repeat_ngram_size, prompt_ids) if rules.no_repeat_ngram_size else None
        return cls(params, seed, stop_ids, rules, ngrams, prompt)

    @property
    def penalised(self) -> bool:
        """Whether any penalty is on."""
        p = self.params
        return p.presence_penalty != 0 or p.frequency_penalty != 0 or p.repetition_penalty != 1

    @property
    def bans_stops(self) -> bool:
        """Whether it is too early for the answer to end."""
        return self.num_output < self.params.min_tokens and bool(self.stop_ids)

    @property
    def rules_out(self) -> bool:
        """Whether the checkpoint may rule tokens out now."""
        rules = self.rules
        return bool(self.ngrams or rules.suppressed or (rules.suppressed_first and not self.num_output))

    @property
    def bans_ends(self) -> bool:
        """Whether the grammar would allow the end of an answer that is to ignore it."""
        return self.guide is not None and self.guide.matcher is not None and bool(self.guide.ignored)

    @property
    def bans(self) -> bool:
        """Whether there are, or may be, tokens that must not come next."""
        return self.bans_stops or self.rules_out or self.bans_ends

    @property
    def follows_tokens(self) -> bool:
        """Whether what may come next depends on which token came last, or on what the caller is told of it."""
        guided = self.guide is not None and (self.guide.matcher is not None or self.guide.has_calls)
        return bool(self.penalised or self.ngrams or guided or self.params.logprobs is not None)

    def after(self, tokens: int) -> SamplingState:
        """The state so many tokens later, whichever they are; for one that does not follow tokens."""
        return replace(self, num_output=self.num_output + tokens) if tokens else self

    @property
    def plain(self) -> bool:
        """Whether the logits are taken as they are, but for the grammar."""
        return not (self.penalised or self.params.logit_bias or self.bans)

    def banned(self) -> set[int]:
        """Tokens that must not come next."""
        banned = set(self.stop_ids) if self.bans_stops else set()
        banned |= self.rules.suppressed
        if not self.num_output:
            banned |= self.rules.suppressed_first
        if self.ngrams:
            banned |= self.ngrams.would_repeat()
        if self.guide and self.bans_ends:
            banned |= self.guide.ignored
        return banned

    def append(self, token_id: int) -> None:
        """Notes a token that has been made."""
        self.num_output += 1
        if self.penalised:
            self.output[token_id] += 1
        if self.ngrams:
            self.ngrams.append(token_id)


@dataclass(frozen=True)
class Sampled:
    """One row's next token, those behind its guesses, and the scores of the prompt tokens that were asked for."""

    token_id: int
    logprobs: Logprobs | None
    scores: tuple[Logprobs, ...] = ()
    behind_guesses: tuple[Sampled, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A row that makes no token: the scores of the prompt tokens that were asked for."""

    scores: tuple[Logprobs, ...]


@dataclass(frozen=True)
class Targets:
    """Known tokens whose log-probabilities are wanted.

    Attributes:
        first: the place in its row of the token before the first of them.
        token_ids: they follow each other.
        top: how many alternatives to report for each.
    """

    first: int
    token_ids: list[int]
    top: int


@dataclass(frozen=True)
class Masks:
    """What the grammars of a step forbid.

    Attributes:
        forbidden: waits for them. Gives the rows that have one, and `[those rows, vocab]`, bool. Of a row whose grammar
            has failed it gives nothing: what comes next there does not matter any more.
    """

    forbidden: Callable[[], tuple[list[int], Tensor]]


class Draw:
    """Next tokens of a batch of rows, on their way from the device.

    Args:
        logits: `[rows, vocab]`, any float type, as the model gives them.
        rows: the state of each row; not changed.
        masks: of the rows that have a grammar; None where no row has.
        keep: whether the memory of `logits` is used again before the tokens are asked for.

    Attributes:
        token_ids: `[rows]`, on the device. Wrong for the few rows that `tokens` finds out to need more candidates.
    """

    @torch.inference_mode()
    def __init__(
        self, logits: Tensor, rows: list[SamplingState], masks: Masks | None = None, *, keep: bool = False
    ) -> None:
        assert logits.shape[0] == len(rows)
        self._rows = rows
        self._raw = raw = logits.to(torch.float32, copy=keep)
        scores = raw
        if masks or not all(row.plain for row in rows):
            scores = raw.clone()
            _add_bias(scores, rows)
            _penalise(scores, rows)
            _ban(scores, rows)
            if masks:
                _constrain(scores, raw, rows, *masks.forbidden())
        self.token_ids = scores.argmax(-1)
        self._whole = torch.ones_like(self.token_ids)
        self._drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
        if self._drawn:
            index = _tensor(self._drawn, raw.device)
            self._scores = scores[index]
            drawn = [rows[i] for i in self._drawn]
            self.token_ids[index], self._whole[index] = _draw(self._scores, drawn, _CANDIDATES)
        finite = raw.amax(-1).isfinite()  # of a row with a NaN in it, that is what is largest
        numbers = torch.stack([self.token_ids, self._whole, finite.long()])
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._event = None
        if raw.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @torch.inference_mode()
    def tokens(self) -> tuple[list[Sampled], list[int]]:
        """Waits. Gives the tokens, and the rows in which they are not those of `token_ids`."""
        if self._event:
            self._event.synchronize()
        chosen, whole, finite = self._numbers.tolist()
        again = [place for place, i in enumerate(self._drawn) if not whole[i]]
        if again:  # the cut lies beyond the candidates
            index = _tensor(again, self._scores.device)
            rows = [self._rows[self._drawn[place]] for place in again]
            found, _ = _draw(self._scores[index], rows, self._scores.shape[-1])
            for place, token_id in zip(again, found.tolist(), strict=True):
                chosen[self._drawn[place]] = token_id
        logprobs = _logprobs(self._raw, chosen, self._rows)
        sampled = [
            Sampled(token_id, logprobs.get(i)) if finite[i] else Sampled(NO_TOKEN, None)
            for i, token_id in enumerate(chosen)
        ]
        return sampled, [self._drawn[place] for place in again]


def sample(logits: Tensor, rows: list[SamplingState], masks: Masks | None = None) -> list[Sampled]:
    """Chooses one token per row; see `Draw`."""
    return Draw(logits, rows, masks).tokens()[0]


@torch.inference_mode()
def score(logits: Tensor, wanted: list[Targets]) -> list[tuple[Logprobs, ...]]:
    """Log-probabilities of known tokens under the model's own distribution.

    Args:
        logits: `[tokens, vocab]`, any float type: a row for each token of `wanted`, those of the first row first.
        wanted: the tokens.
    """
    token_ids = [token_id for targets in wanted for token_id in targets.token_ids]
    counts = [targets.top for targets in wanted for _ in targets.token_ids]
    assert logits.shape[0] == len(token_ids)
    scores: list[Logprobs] = []
    for begin in range(0, len(token_ids), _SCORED_AT_ONCE):
        part = slice(begin, begin + _SCORED_AT_ONCE)
        scores += _report(logits[part].float(), token_ids[part], counts[part], ranks=True)
    found = iter(scores)
    return [tuple(itertools.islice(found, len(targets.token_ids))) for targets in wanted]


def _tensor(values: list[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """On its way to the device: from memory that may be swapped out, a GPU's copy waits for all that it computes."""
    made = torch.tensor(values, dtype=dtype)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on `seed` and `position` alone (a counter-based generator, by a keyed hash)."""
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _add_bias(scores: Tensor, rows: list[SamplingState]) -> None:
    entries = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.params.logit_bias.items()]
    if entries:
        where = _coordinates([(i, token) for i, token, _ in entries], scores)
        scores[where] += _tensor([bias for *_, bias in entries], scores.device)


def _penalise(scores: Tensor, rows: list[SamplingState]) -> None:
    """Repetition (CTRL), then frequency and presence (OpenAI), on the tokens that have occurred."""
    entries = [
        (i, token, row.params.repetition_penalty, row.output[token], row.params)
        for i, row in enumerate(rows)
        if row.penalised
        for token in row.prompt | row.output.keys()
    ]
    if not entries:
        return
    where = _coordinates([(i, token) for i, token, *_ in entries], scores)
    repetition = _tensor([r for _, _, r, _, _ in entries], scores.device)
    subtract = _tensor([p.frequency_penalty * n + p.presence_penalty * (n > 0) for *_, n, p in entries], scores.device)
    old = scores[where]
    scores[where] = torch.where(old < 0, old * repetition, old / repetition) - subtract


def _ban(scores: Tensor, rows: list[SamplingState]) -> None:
    by_row = {i: row.banned() for i, row in enumerate(rows) if row.bans}
    # A row in which nothing is left would have no token at all: there the rules give way.
    banned = [(i, token) for i, tokens in by_row.items() if len(tokens) < scores.shape[1] for token in tokens]
    if banned:
        scores[_coordinates(banned, scores)] = -torch.inf


def _constrain(scores: Tensor, raw: Tensor, rows: list[SamplingState], guided: list[int], forbidden: Tensor) -> None:
    """Leaves each guided row what its grammar allows. Where bans, or the model, leave nothing of that, it wins."""
    for row, mask in zip(guided, forbidden, strict=True):  # in place: a copy of such rows costs as much as all else
        _forbid(scores[row], mask)
    best = scores.amax(-1).tolist()
    for row, mask in zip(guided, forbidden, strict=True):
        if best[row] == -torch.inf:
            scores[row] = _unbanned(raw[row], rows[row], mask)


def _unbanned(raw: Tensor, row: SamplingState, mask: Tensor) -> Tensor:
    """The scores of one row without its bans; where the model gives nothing that is allowed a chance, all the same."""
    scores = raw[None].clone()
    _add_bias(scores, [row])
    _penalise(scores, [row])
    _forbid(scores[0], mask)
    return scores[0] if scores.amax() > -torch.inf else _forbid(torch.zeros_like(raw), mask)


def _forbid(scores: Tensor, mask: Tensor) -> Tensor:
    scores[: len(mask)].masked_fill_(mask, -torch.inf)
    scores[len(mask) :] = -torch.inf  # ids beyond the vocabulary, in a table that is padded
    return scores


def _coordinates(pairs: list[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    index = _tensor(pairs, like.device)
    return index[:, 0], index[:, 1]


def _draw(scores: Tensor, rows: list[SamplingState], candidates: int) -> tuple[Tensor, Tensor]:
    """One token per row, `[rows]`, and 1 where it is right, 0 where more candidates are needed."""
    device, vocab_size = scores.device, scores.shape[-1]
    temperature = _tensor([row.params.temperature for row in rows], device)
    # A temperature near 0 must not overflow: the largest score becomes 0 first.
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature.clamp(min=1e-5)[:, None]
    points = _tensor([uniform(row.seed, row.num_output) for row in rows], device, torch.float64)
    cut = [i for i, row in enumerate(rows) if _is_cut(row.params, vocab_size)]
    if not cut:
        return _invert(scores.softmax(-1), points), points.new_ones(len(rows), dtype=torch.long)
    token_ids = points.new_empty(len(rows), dtype=torch.long)
    right = torch.ones_like(token_ids)
    if len(cut) < len(rows):
        whole = _tensor(sorted(set(range(len(rows))) - set(cut)), device)
        token_ids[whole] = _invert(scores[whole].softmax(-1), points[whole])
    index = _tensor(cut, device)
    kept = _keep(scores[index], [rows[i].params for i in cut], min(candidates, vocab_size))
    probabilities, ids, complete = kept
    token_ids[index] = ids.gather(-1, _invert(probabilities, points[index])[:, None])[:, 0]
    right[index] = complete.long()
    return token_ids, right


def _is_cut(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0


def _keep(scores: Tensor, params: list[SamplingParams], candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `candidates` most probable tokens of each row, those beyond its cut set to probability 0.

    Returns:
        probabilities `[rows, candidates]` (not normalised), token ids of the same shape, and `[rows]` whether the cut
        lies within the candidates.
    """
    device = scores.device
    vocab_size = scores.shape[-1]
    top_k = _tensor([p.top_k if p.top_k > 0 else vocab_size for p in params], device)[:, None]
    top_p = _tensor([p.top_p for p in params], device)[:, None]
    min_p = _tensor([p.min_p for p in params], device)[:, None]
    values, ids = scores.topk(candidates, dim=-1)
    rank = torch.arange(candidates, device=device)
    within_k = rank < top_k
    total = torch.where(
        top_k >= vocab_size,
        scores.logsumexp(-1, keepdim=True),
        values.masked_fill(~within_k, -torch.inf).logsumexp(-1, keepdim=True),
    )
    probabilities = (values - total).exp().masked_fill(~within_k, 0)
    before = probabilities.cumsum(-1) - probabilities
    kept = within_k & ((before < top_p) | (rank == 0)) & (probabilities >= min_p * probabilities[:, :1])
    counted = (top_k <= candidates) | (top_k >= vocab_size)  # `total` is right
    complete = (~kept[:, -1] & counted[:, 0]) | (candidates == vocab_size)
    return probabilities.masked_fill(~kept, 0), ids, complete


def _invert(probabilities: Tensor, points: Tensor) -> Tensor:
    """The index in each row at which the cumulative distribution passes its point; never one of probability 0."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, points[:, None] * total, right=True)
    last = (cumulative < total).sum(-1, keepdim=True)
    return torch.minimum(index, last)[:, 0]


def _logprobs(raw: Tensor, chosen: list[int], rows: list[SamplingState]) -> dict[int, Logprobs]:
    """Log-probabilities under the model's own distribution, for the rows that asked."""
    asked = {i: n for i, row in enumerate(rows) if (n := row.params.logprobs) is not None}
    if not asked:
        return {}
    index = _tensor(list(asked), raw.device)
    found = _report(raw[index], [chosen[i] for i in asked], list(asked.values()))
    return dict(zip(asked, found, strict=True))


def _report(raw: Tensor, chosen: list[int], counts: list[int], *, ranks: bool = False) -> list[Logprobs]:
    """Of each row: the chosen token, as many of the most probable ones as `counts` says, and the rank if wanted."""
    logprobs = raw.log_softmax(-1)
    of_chosen = logprobs.gather(-1, _tensor(chosen, raw.device)[:, None])
    rank = (
        (logprobs > of_chosen).sum(-1, dtype=torch.int32) + 1 if ranks else torch.zeros(len(chosen), dtype=torch.long)
    )
    values, ids = logprobs.topk(min(max(counts), raw.shape[-1]), dim=-1)
    rows = zip(of_chosen[:, 0].tolist(), ids.tolist(), values.tolist(), rank.tolist(), counts, strict=True)
    return [Logprobs(own, tuple(zip(top[:n], best[:n], strict=True)), place) for own, top, best, place, n in rows]
