from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_page.markdown import escape, fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $5, not $10.", r"It costs \$5, not \$10."),
        ("$x^2$ is a formula", "$x^2$ is a formula"),
        (r"so is \(a_1\)", "so is $a_1$"),
        (r"\[ \frac{1}{2} \]", r"$$\frac{1}{2}$$"),
        ("$$\nx\n$$", "$$\nx\n$$"),
        ("![chart](https://example.com/?q=secret)", r"!\[chart](https://example.com/?q=secret)"),
        ("![chart][ref]", r"!\[chart][ref]"),
        (":red[alarm] at 10:30, see note:this", r"\:red[alarm] at 10:30, see note:this"),
        (r"\$5 and \:red[x]", r"\$5 and \:red[x]"),
    ],
)
def test_what_streamlit_would_misread_is_changed(text: str, expected: str) -> None:
    assert fit(text) == expected


@pytest.mark.parametrize(
    "code",
    [
        "`vec![1]; $HOME :red[x]`",
        "``a ` b $1``",
        "```rust\nvec![1];\n$5 $6\n```",
        "~~~\n$5 and $6\n```\n~~~",
        "1. so:\n   ```sh\n   echo $HOME $PATH\n   ```",
        "> ```\n> ![x](y)\n> ```",
        "```python\nnot_closed_yet = '![x] $5 $6'",
    ],
)
def test_code_stays_as_it_is(code: str) -> None:
    assert fit(code) == code


def test_what_follows_code_is_text_again() -> None:
    assert fit("```\n$5\n```\n$5 `$5` $6") == "```\n$5\n```\n\\$5 `$5` \\$6"


@given(st.text(alphabet="ab 1\n`~$!\\[](){}:>-", max_size=80))
def test_it_comes_to_an_end_and_only_adds(text: str) -> None:
    def letters(markdown: str) -> list[str]:
        return [letter for letter in markdown if letter not in "\\$()[] \n"]

    assert letters(fit(text)) == letters(text)


@pytest.mark.parametrize("text", ["\\[" * 5000, "`a " * 5000, "$a " * 5000, "```\n" * 5000, "[" * 20000])
def test_no_text_is_slow(text: str) -> None:
    fit(text)


def test_escaped_text_is_one_line_without_markup() -> None:
    assert escape("a\n <b> *c* `d` :red[e]") == r"a \<b\> \*c\* \`d\` \:red\[e\]"
