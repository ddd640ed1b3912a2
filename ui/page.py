"""The page itself, run from top to bottom by Streamlit whenever something is touched."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from chat_page import gateway, problems, sidebar, transcript
from chat_page.chat import Chat
from chat_page.settings import PageSettings

ASSETS = Path(__file__).parent / "chat_page"
FRESH_S = 10.0
"""How long the list of models holds."""


def main() -> None:
    st.set_page_config(page_title="triton-chat", page_icon=str(ASSETS / "icon.svg"))
    st.logo(ASSETS / "logo.svg", size="large", icon_image=ASSETS / "icon.svg")
    st.html(ASSETS / "style.css")
    try:
        settings = PageSettings.from_environment(os.environ)
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return
    show(settings)


def show(settings: PageSettings) -> None:
    chat: Chat = st.session_state.setdefault("chat", Chat(settings))
    models, problem = catalogue(settings)
    chat.models = models or chat.models
    options = sidebar.show(chat)
    above = st.bottom.container(key="above-input")
    typed = st.chat_input("Ask anything", key=transcript.INPUT)
    question = (typed or chat.take_pending() or "").strip()
    continues = chat.take_continues()
    if question:
        chat.ask(question, options)
    elif continues:
        chat.go_on(options)
    running = chat.running
    if running:
        above.button("Stop", key="stop", icon=":material/stop_circle:", on_click=chat.stop)
    welcome = st.empty()
    if chat.conversation.turns:
        transcript.show(chat, running)
    else:
        with welcome.container(key="welcome"):
            transcript.show_welcome(chat, problem, catalogue.clear)


@st.cache_data(ttl=FRESH_S, show_spinner=False)
def catalogue(settings: PageSettings) -> tuple[tuple[str, ...], str]:
    """The chat models, and a sentence if they cannot be told."""
    try:
        return gateway.chat_models(settings), ""
    except problems.EXPECTED as error:
        return (), problems.report(error)


main()
