"""The conversation on the page: turns, the answer as it grows, and what can be done with the last one."""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from chat_page.chat import Chat
from chat_page.conversation import Answer
from chat_page.examples import examples
from chat_page.generation import Generation
from chat_page.markdown import escape, fit

INPUT = "input"
"""The key of the input field, by which a question can be put back into it."""
_FRAME_S = 0.06
"""Between two looks at a growing answer: about as often as a reader sees a difference."""
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
            body, note = st.empty(), st.empty()
        actions = st.empty()
        if grows and chat.generation is not None:
            _follow(chat.generation, body)
            st.rerun()
        _show_answer(turn.answer, body, note)
        if last:
            with actions.container(key="actions", horizontal=True):
                _show_actions(chat, turn.answer)


def _follow(generation: Generation, body: DeltaGenerator) -> None:
    """Draws the answer whenever it has changed, until it is complete."""
    drawn, drawn_at, began_at = None, 0.0, time.monotonic()
    while not generation.look(_FRAME_S):
        answer, now = generation.turn.answer, time.monotonic()
        if answer is drawn and now - drawn_at < _STILL_S:
            continue
        if answer.text:
            body.markdown(fit(answer.text))
        else:
            body.caption(_waiting(now - began_at))
        drawn, drawn_at = answer, now


def _show_answer(answer: Answer, body: DeltaGenerator, note: DeltaGenerator) -> None:
    if answer.text:
        body.markdown(fit(answer.text))
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
        "empty answer" if answer.state == "complete" and not answer.text else "",
        f"{rate:.1f} tokens/s" if rate is not None else "",
        f"first token {_duration(answer.first_token_s)}" if answer.first_token_s is not None else "",
        f"{answer.completion_tokens} tokens" if answer.completion_tokens is not None else "",
        escape(answer.model),
    ]
    return " · ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
