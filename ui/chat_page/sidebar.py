"""The sidebar: which model, how to answer, and what to do with the conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from chat_page.chat import Chat
from chat_page.documents import NotUsableError, schema_of, tools_of
from chat_page.examples import tool_example
from chat_page.markdown import escape
from chat_page.options import CONTROLS, Control, Options, Sampling

_OWN = "default"
"""In an empty field: nothing is sent, and the model's default holds."""
_THINKING = {_OWN: None, "on": True, "off": False}
T = TypeVar("T")


def show(chat: Chat) -> Options:
    """Draws it and returns what is set."""
    with st.sidebar:
        st.button("New chat", key="new-chat", icon=":material/edit_square:", width="stretch", on_click=chat.clear)
        options = Options(model=_model(chat.models), system=_system(), sampling=_sampling(), **_tools_and_format())
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


def _tools_and_format() -> dict[str, Any]:
    """Fields of the options; what cannot be read is said below its field, and to whoever asks all the same."""
    with st.expander("Tools and format", key="tools-and-format"):
        thinking = st.selectbox(
            "Thinking", tuple(_THINKING), key="thinking", help="Only for models whose chat template can switch it."
        )
        example = tool_example(st.context.locale)
        tools, problem = _document(
            "Tools", "tools", tools_of, example, "What the model may call: a JSON list as the OpenAI API has it."
        )
        st.button("Insert an example", key="tools-example", on_click=_insert, args=(example,))
        schema, other = _document(
            "JSON schema", "json-schema", schema_of, '{"type": "object"}', "The answer is JSON that follows it."
        )
    return {
        "tools": tools or (),
        "schema": schema,
        "thinking": _THINKING[thinking],
        "problem": " ".join(sentence for sentence in (problem, other) if sentence),
    }


def _document(label: str, key: str, read: Callable[[str], T], placeholder: str, text: str) -> tuple[T | None, str]:
    """What was typed into a field, and a sentence if that cannot be used."""
    typed = st.text_area(label, key=key, height=160, placeholder=placeholder, help=text)
    try:
        return read(typed), ""
    except NotUsableError as error:
        st.error(escape(str(error)), icon=":material/error:")
        return None, str(error)


def _insert(example: str) -> None:
    st.session_state["tools"] = example


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
