"""What went wrong, as a sentence for the person in front of the page. No address, key or traceback is in it."""

from __future__ import annotations

import logging

import openai

from chat_page.gateway import BrokenOffError, NoModelError, NotAGatewayError
from chat_page.markdown import escape
from chat_page.settings import KEY_VARIABLE

_LOG = logging.getLogger(__name__)

EXPECTED = (openai.OpenAIError, BrokenOffError, NoModelError, NotAGatewayError)
"""What asking the gateway may raise."""

_UNREACHABLE = "The gateway cannot be reached. It may be starting; if not, `make serve` starts it."
_SILENT = "The gateway took too long to answer. Try again, or ask for a shorter answer."
_BAD_KEY = f"The gateway does not accept this page's API key. The operator of the page sets it as `{KEY_VARIABLE}`."
_BROKEN_OFF = "The answer was interrupted."
_TOO_LONG = "This conversation is too long for the model. Start a new chat, or shorten the message."
_TOO_LARGE = "The message is too large for the gateway. Shorten it."
_NO_MODEL = "The gateway serves no chat model at the moment. It may still be loading; try again in a moment."
_GONE_MODEL = "This model is no longer served, or is not a chat model. Choose another one in the sidebar."
_NOT_A_GATEWAY = "The server at the gateway's address does not speak the OpenAI API. Check the address."
_UNEXPECTED = "The page failed while calling the gateway; see its log for details. Try again."
_SHOWN = 400
"""Characters of a message from the gateway."""


def report(error: BaseException) -> str:
    """`sentence`, and for whoever runs the page a line in the log, without what was asked."""
    if isinstance(error, EXPECTED):
        _LOG.warning("the gateway did not answer: %s (%s)", type(error).__name__, error.__cause__)
        return sentence(error)
    _LOG.error("the page failed while calling the gateway", exc_info=error)
    return _UNEXPECTED


def sentence(error: Exception) -> str:
    """One or two sentences in Markdown; what the gateway itself says is escaped."""
    match error:
        case NoModelError():
            return _NO_MODEL
        case openai.APITimeoutError():
            return _SILENT
        case openai.APIConnectionError():
            return _UNREACHABLE
        case openai.APIStatusError():
            return _of_status(error)
        case BrokenOffError():
            return _BROKEN_OFF
        case openai.APIError():
            return f"{_BROKEN_OFF} {_sentence(error)}".strip()
        case _:
            return _NOT_A_GATEWAY


def _of_status(error: openai.APIStatusError) -> str:
    match error.status_code, error.code:
        case ((401 | 403), _):
            return _BAD_KEY
        case _, "model_not_found":
            return _GONE_MODEL
        case _, "context_length_exceeded":
            return f"{_TOO_LONG} {_sentence(error)}".strip()
        case 413, _:
            return _TOO_LARGE
        case 429, _:
            return f"The server is overloaded. {_when(error)}"
        case status, _ if status >= 500:
            return f"The model is not available right now. {_when(error)}"
        case _ if _sentence(error):
            return f"The gateway refused the request. {_sentence(error)}"
        case _:
            return _NOT_A_GATEWAY


def _sentence(error: openai.APIError) -> str:
    """The gateway's own words; empty where the body is not that of an OpenAI error."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    if not isinstance(message, str) or not message.strip():
        return ""
    words = message.strip()
    words = words if len(words) <= _SHOWN else words[:_SHOWN].rstrip() + "…"
    return escape(words[:1].upper() + words[1:]) + ("" if words[-1] in ".!?…" else ".")


def _when(error: openai.APIStatusError) -> str:
    seconds = error.response.headers.get("retry-after", "")
    if not seconds.isdecimal() or seconds == "0":
        return "Try again in a moment."
    return f"Try again in {int(seconds)} second{'' if int(seconds) == 1 else 's'}."
