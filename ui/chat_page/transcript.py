"""The conversation on the page: turns, the answer as it grows, and what can be done with the last one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from chat_page.chat import Chat
from chat_page.conversation import Answer, Call
from chat_page.documents import pretty
from chat_page.examples import examples
from chat_page.generation import Generation
from chat_page.markdown import escape, fit

INPUT = "input"
"""The key of the input field, by which a question can be put back into it."""
_FRAME_S = 0.06
"""Between two looks at a growing answer: about as often as a reader sees a difference."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*")
"""Of a tool, as nearly all are: Markdown leaves it alone."""
_STILL_S = 0.5
"""How often an unchanged answer is drawn again. Only while drawing does a script notice that its browser has gone."""


def show_welcome(chat: Chat, problem: str, look_again: Callable[[], None]) -> None:
    st.title("What would you like to know?", anchor=False)
    st.caption("Ask in English or 中文, or start with one of these.")
    if problem:
        st.error(problem, icon=":material/error:")
        st.button("Retry", key="look-again", icon=":material/refresh:", on_click=look_again)
    with st.container(key="examples"):
        for number, question in enumerate(examples(st.context.locale)):
            st.button(question, key=f"example-{number}", width="stretch", on_click=chat.want, args=(question,))


def show(chat: Chat, running: bool) -> None:
    """While the last answer grows, this returns only with a new run of the script.

    What a turn does not have gets an empty place: while a script runs, Streamlit keeps what an earlier run drew there.
    """
    turns = chat.conversation.turns
    for number, turn in enumerate(turns):
        last = turn is turns[-1]
        grows = running and last
        with st.container(key=f"asked-{number}"), st.chat_message("user"):
            st.text(turn.question)
        with st.container(key="running" if grows else f"answer-{number}"), st.chat_message("assistant"):
            for one in turn.rounds:
                AnswerView().show(one.answer, one.results)
            view, results, note = AnswerView(), st.empty(), st.empty()
        actions = st.empty()
        if grows and chat.generation is not None:
            _follow(chat.generation, view)
            st.rerun()
        asks = last and bool(turn.answer.open_calls)
        view.show(turn.answer, calls=not asks)
        if asks:
            with results.container():
                _ask_for_results(chat, turn.answer, f"{number}-{len(turn.rounds)}")
        _show_end(turn.answer, note)
        if last:
            with actions.container(key="actions", horizontal=True):
                _show_actions(chat, turn.answer)


class AnswerView:
    """One answer on the page: what was thought, what is said, what is called."""

    def __init__(self) -> None:
        self._reasoning, self._text, self._calls = st.empty(), st.empty(), st.empty()
        self._thinking: DeltaGenerator | None = None

    def show(self, answer: Answer, results: Sequence[str] = (), *, calls: bool = True) -> None:
        """An answer that does not grow any more; `results` are those of its calls, which may be left out."""
        if answer.reasoning:
            with self._reasoning.expander("Reasoning"):
                st.markdown(fit(answer.reasoning))
        if answer.text:
            _show_text(answer.text, self._text)
        if answer.calls and calls:
            with self._calls.container():
                for call, result in zip_longest(answer.calls, results):
                    _show_call(call, result)

    def draw(self, answer: Answer, seconds: float) -> None:
        """An answer that grows, as it is after so many seconds. The reader may fold what is thought."""
        if answer.reasoning:
            if self._thinking is None:
                self._thinking = self._reasoning.expander("Thinking …", expanded=True).empty()
            self._thinking.markdown(fit(answer.reasoning))
        if answer.text.lstrip().startswith("{"):
            self._text.code(answer.text, language="json", wrap_lines=True)
        elif answer.text:
            self._text.markdown(fit(answer.text))
        elif answer.characters:
            self._text.empty()  # of the words that stood here while there was nothing
        else:
            self._text.caption(_waiting(seconds))
        if answer.calls:
            with self._calls.container():
                for call in answer.calls:
                    _show_call(call)


def _show_text(text: str, place: DeltaGenerator) -> None:
    """JSON indented, all else as Markdown."""
    document = pretty(text)
    if document is None:
        place.markdown(fit(text))
    else:
        place.code(document, language="json", wrap_lines=True)


def _show_call(call: Call, result: str | None = None) -> None:
    """A card: which tool, its arguments, and its result where there is one."""
    with st.container(border=True):
        _show_wanted(call)
        if result is not None:
            st.caption("Result")
            st.code(pretty(result) or result, language="json" if pretty(result) else None, wrap_lines=True)


def _show_wanted(call: Call) -> None:
    st.markdown(f":material/build: **{_named(call)}**")
    st.code(pretty(call.arguments) or call.arguments, language="json", wrap_lines=True)


def _named(call: Call) -> str:
    """Its name in Markdown. A screen reader reads a label as it is written, so an ordinary name has no backslashes."""
    return call.name if _PLAIN_NAME.fullmatch(call.name) else escape(call.name)


def _ask_for_results(chat: Chat, answer: Answer, place: str) -> None:
    """A form with a card and a field for each call; all results are sent together, as the model wants them."""
    keys = [f"result-{place}-{number}" for number in range(len(answer.open_calls))]
    with st.form(f"results-{place}", border=False):
        for call, key in zip(answer.open_calls, keys, strict=True):
            with st.container(border=True):
                _show_wanted(call)
                st.text_area(
                    f"Result of {_named(call)}",
                    key=key,
                    height=80,
                    placeholder="What the call came to; text or JSON",
                )
        label = "Send the result" if len(keys) == 1 else "Send the results"
        st.form_submit_button(label, key="send-results", type="primary", on_click=_send_results, args=(chat, keys))


def _send_results(chat: Chat, keys: Sequence[str]) -> None:
    chat.give_results(tuple(st.session_state[key] for key in keys))


def _follow(generation: Generation, view: AnswerView) -> None:
    """Draws the answer whenever it has changed, until it is complete."""
    drawn, drawn_at, began_at = None, 0.0, time.monotonic()
    while not generation.look(_FRAME_S):
        answer, now = generation.turn.answer, time.monotonic()
        if answer is drawn and now - drawn_at < _STILL_S:
            continue
        view.draw(answer, now - began_at)
        drawn, drawn_at = answer, now


def _show_end(answer: Answer, note: DeltaGenerator) -> None:
    if answer.state == "failed":
        note.error(answer.problem, icon=":material/error:")
    elif line := figures(answer):
        note.caption(line)


def _waiting(seconds: float) -> str:
    return "Thinking …" if seconds < 2 else f"Waiting for the first token … {seconds:.0f} s"


def _show_actions(chat: Chat, answer: Answer) -> None:
    again = "Try again" if answer.state == "failed" else "Regenerate"
    st.button(again, key="again", icon=":material/refresh:", type="tertiary", on_click=chat.ask_again)
    st.button("Edit", key="edit", icon=":material/edit:", type="tertiary", on_click=_edit, args=(chat,))


def _edit(chat: Chat) -> None:
    st.session_state[INPUT] = chat.take_back()


def figures(answer: Answer) -> str:
    """The line below an answer, such as `52.1 tokens/s · first token 85 ms · 48 tokens`."""
    rate = answer.tokens_per_s
    parts = [
        "stopped" if answer.state == "stopped" else "",
        "truncated at the token limit" if answer.finish_reason == "length" else "",
        "empty answer" if answer.state == "complete" and not (answer.text or answer.calls) else "",
        f"{rate:.1f} tokens/s" if rate is not None else "",
        f"first token {_duration(answer.first_token_s)}" if answer.first_token_s is not None else "",
        f"{answer.completion_tokens} tokens" if answer.completion_tokens is not None else "",
        escape(answer.model),
    ]
    return " · ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
