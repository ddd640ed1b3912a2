"""The web chat page over the OpenAI-compatible gateway: `streamlit run ui/app.py`.

`page.py` is the page. Here it gets the headers by which the browser itself makes sure that nothing is fetched from
anywhere else, whatever a model writes. Settings: `.streamlit/config.toml` beside this file, and the environment.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from chat_page.headers import SecurityHeaders

app = st.App(Path(__file__).with_name("page.py"), middleware=[Middleware(SecurityHeaders)])
