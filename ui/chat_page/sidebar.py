"""The sidebar: which model, how to answer, and what to do with the conversation."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from chat_page.chat import Chat
from chat_page.options import Options, Sampling

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
    left, right = st.columns(2)
    with left:
        temperature = _real("Temperature", "temperature", 0.0, 2.0, "0: always the most probable token")
        max_tokens = _whole("Max tokens", "max-tokens", 1, "Maximum length of the answer in tokens")
    with right:
        top_p = _real("Top p", "top-p", 0.05, 1.0, "Sample from the most probable tokens with this total probability")
        seed = _whole("Seed", "seed", 0, "The same seed gives the same answer")
    with st.expander("More sampling", key="more-sampling"):
        left, right = st.columns(2)
        with left:
            top_k = _whole("Top k", "top-k", 1, "Sample from this many most probable tokens")
            presence = _real("Presence", "presence", -2.0, 2.0, "Penalty for tokens that have occurred")
            repetition = _real("Repetition", "repetition", 0.1, 2.0, "Above 1: penalty for tokens of prompt and answer")
        with right:
            min_p = _real("Min p", "min-p", 0.0, 1.0, "Drop tokens below this fraction of the highest probability")
            frequency = _real("Frequency", "frequency", -2.0, 2.0, "Penalty for tokens by how often they occurred")
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
    )


def _real(label: str, key: str, lowest: float, highest: float, help_text: str) -> float | None:
    return st.number_input(
        label,
        lowest,
        highest,
        None,
        0.05,
        format="%.2f",
        key=key,
        help=f"{help_text}. {lowest:g} to {highest:g}.",
        placeholder=_OWN,
    )


def _whole(label: str, key: str, lowest: int, help_text: str) -> int | None:
    return st.number_input(label, lowest, None, None, 1, key=key, help=f"{help_text}.", placeholder=_OWN)


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
