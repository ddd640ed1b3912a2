"""Which chat models there are, by the settings that the environment names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from triton_chat_server.errors import CommandError

CONFIG_VARIABLE = "TRITON_CHAT_ENGINE_CONFIG"
CHAT = "chat"
RESERVED = ("chat_unary", "embeddings", "tokenizer", "vllm_model")
"""The other models of the repository."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def chat_model_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    """`chat` alone, or one for each `<name>.json` where TRITON_CHAT_ENGINE_CONFIG names a folder.

    Raises CommandError for a path that is not there, a folder without settings, and a name that no model can have.
    """
    named = environment.get(CONFIG_VARIABLE)
    if not named:
        return (CHAT,)
    path = Path(named)
    if path.is_file():
        return (CHAT,)
    if not path.is_dir():
        raise CommandError(f"{CONFIG_VARIABLE}: no file or folder {named!r} exists")
    # A mounted ConfigMap has hidden files of its own.
    names = sorted(file.stem for file in path.glob("*.json") if not file.name.startswith("."))
    if not names:
        raise CommandError(f"{CONFIG_VARIABLE}: the folder {named!r} contains no <model name>.json")
    for name in names:
        check_name(name)
    return tuple(names)


def check_name(name: str) -> None:
    """Raises CommandError unless a chat model may have the name."""
    if name in RESERVED:
        raise CommandError(f"the name {name!r} is not allowed for a chat model: another model of the repository has it")
    if not _NAME.fullmatch(name):
        raise CommandError(
            f"the name {name!r} is not allowed for a chat model: use letters, digits, '-', '_' and '.', "
            "and begin with a letter or a digit"
        )
