"""The sidebar: which model, how to answer, and what to do with the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from chat_page.chat import Chat
from chat_page.options import CONTROLS, Control, Options, Sampling

_OWN = "default"
"""In an empty field: nothing is sent, and the model's default holds."""


def show(chat: Chat) -> Options:
    """Draws it and returns what is set."""
    with st.sidebar:
        st.button("New chat", key="new-chat", icon=":material/edit_square:", width="stretch", on_click=chat.clear)
        options = Options(model=_model(chat.models), system=_system(), sampling=_sampling())
        _downloads(chat, options.system)
    return options


def _model(models: Sequence[str]) -> str | None:
    return st.selectbox("Model", models, key="model", disabled=not models, placeholder="none available")


def _system() -> str:
    return st.text_area("System prompt", key="system", height=100, placeholder="You are a helpful assistant.")


def _sampling() -> Sampling:
    given = _drawn([control for control in CONTROLS if control.shown.always])
    with st.expander("More sampling", key="more-sampling"):
        given |= _drawn([control for control in CONTROLS if not control.shown.always])
    return Sampling(**given)


def _drawn(controls: Sequence[Control]) -> dict[str, Any]:
    """In two columns; returns what is set, by name."""
    columns = st.columns(2)
    given = {}
    for number, control in enumerate(controls):
        with columns[number % 2]:
            given[control.name] = _number(control)
    return given


def _number(control: Control) -> float | None:
    """Any number: the engine refuses what it cannot take, and the page shows its sentence."""
    given: float | None = st.number_input(
        control.shown.label,
        value=None,
        step=1 if control.is_whole else 0.05,
        format=None if control.is_whole else "%.2f",
        key=control.name.replace("_", "-"),
        help=f"{control.shown.text}.",
        placeholder=_OWN,
    )
    return given


def _downloads(chat: Chat, system: str) -> None:
    conversation = chat.conversation
    empty = not conversation.turns
    st.caption("Download this conversation")
    with st.container(horizontal=True, key="downloads"):
        st.download_button(
            "JSON",
            lambda: conversation.to_json(system),
            "conversation.json",
            "application/json",
            key="download-json",
            disabled=empty,
            on_click="ignore",
        )
        st.download_button(
            "Markdown",
            lambda: conversation.to_markdown(system),
            "conversation.md",
            "text/markdown",
            key="download-markdown",
            disabled=empty,
            on_click="ignore",
        )
