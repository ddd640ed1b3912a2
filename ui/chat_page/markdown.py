r"""A model's Markdown, made fit for Streamlit's. Code is never touched, HTML is shown as text by Streamlit itself.

- Images become text: the browser would fetch them from wherever the model, or whoever wrote what it read, says.
- A dollar sign is one, unless a pair of them encloses a formula as pandoc has it: "$5 and $10" is none.
- `\(x\)` and `\[x\]`, which most models write, become formulas.
- Streamlit's directives, such as `:red[text]`, are text.
"""

from __future__ import annotations

import re

_TOKENS = re.compile(
    r"""
    ^[ \t>]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?:.*?^[ \t>]*(?P=fence)[`~]*[ \t]*$|.*\Z)  # a code block, closed or not yet
  | (?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).){1,2000}?(?<!`)(?P=ticks)(?!`)  # inline code, within its paragraph
  | \$\$.{1,2000}?\$\$
  | \$(?=[^\s$])[^$\n]*?(?<=[^\s\\])\$(?!\d)  # pandoc's rule for formulas
  | \\\((?P<inline>[^\n]{1,2000}?)\\\)
  | \\\[(?P<display>.{1,2000}?)\\\]
  | \\[^\w\s]  # escaped already
  | (?P<image>!\[)
  | (?P<bare>\$ | :(?=[A-Za-z][\w-]*[\[{]))  # a dollar sign, or what begins a directive
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def fit(text: str) -> str:
    """The Markdown to give to Streamlit."""
    return _TOKENS.sub(_replacement, text)


def escape(text: str) -> str:
    """Markdown that shows the text as it is, in one line."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def _replacement(token: re.Match[str]) -> str:
    match token.lastgroup:
        case "inline":
            return f"${token['inline'].strip()}$"
        case "display":
            return f"$${token['display'].strip()}$$"
        case "image":
            return r"!\["
        case "bare":
            return f"\\{token[0]}"
        case _:
            return token[0]
