"""Makes a model repository of links: the same code for each chat model, under a name of its own."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from triton_chat_server.errors import CommandError
from triton_chat_server.models import CHAT, RESERVED

FOLDER_VARIABLE = "TRITON_CHAT_ASSEMBLY"
_FORWARDING = ("chat_unary", "vllm_model")  # to `chat`
_MARK = ".triton-chat-assembly"
_NAME_LINE = re.compile(rf'^name: "{CHAT}"$', re.MULTILINE)


def needed(chat_models: Sequence[str], *, left_out: Collection[str]) -> bool:
    """Whether the repository as it stands is not the one to serve; `left_out` names models of `RESERVED`."""
    return tuple(chat_models) != (CHAT,) or bool(left_out)


def assemble(
    source: Path, chat_models: Sequence[str], *, left_out: Collection[str], environment: Mapping[str, str]
) -> Path:
    """The folder, in TRITON_CHAT_ASSEMBLY or a new temporary one. Raises CommandError where it cannot be made."""
    try:
        folder = _empty_folder(environment.get(FOLDER_VARIABLE))
        for name in chat_models:
            _chat_model(source / CHAT, folder / name, name)
        for name in _others(chat_models, left_out):
            (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    except OSError as error:
        raise CommandError(f"the model repository could not be assembled: {error}") from error
    return folder


def _others(chat_models: Sequence[str], left_out: Collection[str]) -> list[str]:
    without = {*left_out, *(() if CHAT in chat_models else _FORWARDING)}
    return [name for name in RESERVED if name not in without]


def _chat_model(source: Path, target: Path, name: str) -> None:
    """A folder with its own configuration files, since these hold the name, and a link to the code."""
    for path in [source / "config.pbtxt", *(source / "configs").glob("*.pbtxt")]:
        renamed, count = _NAME_LINE.subn(f'name: "{name}"', path.read_text("utf-8"))
        if count != 1:
            raise CommandError(f'{path} must have one line `name: "{CHAT}"`')
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(renamed, "utf-8")
    (target / "1").symlink_to((source / "1").resolve(), target_is_directory=True)


def _empty_folder(named: str | None) -> Path:
    """A folder of an earlier start is emptied; one with anything else in it is refused."""
    if not named:
        return Path(tempfile.mkdtemp(prefix="triton-chat-"))
    folder = Path(named)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / _MARK
    if any(folder.iterdir()) and not mark.exists():
        raise CommandError(f"{FOLDER_VARIABLE}: the folder {named!r} holds other files; choose an empty one")
    mark.touch()
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != mark:
            entry.unlink()
    return folder
