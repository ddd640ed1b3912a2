"""A fetch from beginning to end, whatever the source."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch import marker, parts, progress
from triton_chat_server.fetch.files import AdapterSource, RemoteFile, Sink, Snapshot, Source, sha256_checked, sha256_of
from triton_chat_server.fetch.lock import locked
from triton_chat_server.fetch.marker import Kept, Marker
from triton_chat_server.fetch.selection import BIN_INDEX, Selection, select, select_adapter

log = logging.getLogger("fetch")

_HASHING_THREADS = 4
T = TypeVar("T")
R = TypeVar("R")


def fetch(
    source: Source, target: Path, *, convert_bins: bool = False, verify: bool = False, adapter: bool = False
) -> None:
    """Nothing is done where `target` holds it already. Raises CommandError.

    Args:
        source: where it is.
        target: the folder for it.
        convert_bins: whether pickled weights will do.
        verify: whether to look at the content of what is there.
        adapter: it is a LoRA adapter, and no checkpoint.
    """
    source = AdapterSource(source) if adapter else source
    try:
        # Before the lock, which a read-only volume may not allow, and without changing anything.
        if not verify and _is_there(source, target, verify=False):
            return
        target.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if not _is_there(source, target, verify=verify):
                _download(source, target, convert_bins=convert_bins)
    except OSError as error:
        raise CommandError(f"{target}: {error.strerror or error}") from error


def _is_there(source: Source, target: Path, *, verify: bool) -> bool:
    found = marker.read(target)
    if found is None or not found.is_of(source.identity) or not found.holds(target):
        return False
    if verify and (changed := _changed(found, target)):
        log.warning("changed since the last fetch, fetching again: %s", ", ".join(changed))
        _remove(changed, target)
        return False
    log.info("already there%s: %s", f", commit {found.commit}" if found.commit else "", target)
    return True


def _changed(found: Marker, target: Path) -> list[str]:
    sums = _in_threads(lambda name: sha256_of(target / name), found.files)
    return [name for name, found_sum in zip(found.files, sums, strict=True) if found_sum != found.files[name].sha256]


def _download(source: Source, target: Path, *, convert_bins: bool) -> None:
    snapshot = source.snapshot()

    def append(file: RemoteFile, out: Sink) -> None:
        source.append(snapshot, file, out)

    selection = _select(source, snapshot, append, convert=convert_bins)
    selection = replace(selection, files=source.detailed(selection.files))
    _drop_outdated(marker.read(target), source, selection, target)
    _announce(source, snapshot, selection, target)
    _check_space(selection, target)
    with progress.reported(selection.size, lambda: parts.bytes_there(selection.files, target)):
        parts.download(selection.files, target, append)
    log.info("checking %d files", len(selection.files))
    sums = _in_threads(lambda file: sha256_checked(file, target), selection.files)
    kept = {file.path: Kept(file.size, found, file.etag) for file, found in zip(selection.files, sums, strict=True)}
    if selection.bins:
        kept = _converted(selection, kept, target)
    parts.clean(target)
    marker.write(Marker(source.identity, snapshot.commit, kept, complete=True), target)
    log.info("done: %s in %s", progress.size(sum(file.size or 0 for file in kept.values())), target)


def _select(
    source: Source, snapshot: Snapshot, append: Callable[[RemoteFile, Sink], None], *, convert: bool
) -> Selection:
    if isinstance(source, AdapterSource):
        return select_adapter(snapshot.files, convert=convert)
    return select(snapshot.files, lambda path: parts.content(snapshot.files[path], append), convert=convert)


def _announce(source: Source, snapshot: Snapshot, selection: Selection, target: Path) -> None:
    """Says what is to come, in the log, and in the marker for whoever has to clean up."""
    planned = {file.path: Kept(etag=file.etag) for file in selection.files}
    planned |= {name: Kept() for name in selection.converted}
    strays = {path.name for path in target.glob("*.safetensors")} - planned.keys()
    if strays:
        raise CommandError(
            f"{target} holds {min(strays)}, which this command did not fetch; empty the folder or choose another"
        )
    marker.write(Marker(source.identity, snapshot.commit, planned, complete=False), target)
    at = f" at commit {snapshot.commit}" if snapshot.commit else ""
    log.info("%d files, %s%s, into %s", len(selection.files), progress.size(selection.size), at, target)


def _drop_outdated(earlier: Marker | None, source: Source, selection: Selection, target: Path) -> None:
    """Removes what an earlier run has put there and this one does not want, half a conversion included."""
    if earlier is not None and not earlier.is_of(source.identity):
        log.info("removing another checkpoint from the folder")
        _remove(earlier.files, target)
        parts.clean(target)
    elif earlier is not None:  # of the same source at another time
        wanted = {file.path: file.etag for file in selection.files}
        _remove((name for name, file in earlier.files.items() if wanted.get(name) != file.etag), target)
        made = selection.converted
        _remove([*made, *(parts.FOLDER / name for name in made)], target)


def _check_space(selection: Selection, target: Path) -> None:
    needed = selection.size - parts.bytes_there(selection.files, target) + selection.bin_size
    free = shutil.disk_usage(target).free
    if needed > free:
        raise CommandError(
            f"{target} has {progress.size(free)} free, but {progress.size(needed)} are needed"
            + (", including the conversion" if selection.bins else "")
        )


def _converted(selection: Selection, kept: dict[str, Kept], target: Path) -> dict[str, Kept]:
    made = selection.converted
    convert = import_module("triton_chat_server.fetch.convert")  # with torch, which takes seconds
    convert.to_safetensors(target, selection.bins, made)
    sums = _in_threads(lambda name: sha256_of(target / name), made)
    gone = [*selection.bins, BIN_INDEX]
    _remove(gone, target)
    left = {name: file for name, file in kept.items() if name not in gone}
    return left | {name: Kept((target / name).stat().st_size, found) for name, found in zip(made, sums, strict=True)}


def _remove(names: Iterable[str | Path], target: Path) -> None:
    for name in names:
        (target / name).unlink(missing_ok=True)


def _in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        return list(pool.map(work, items))
