"""Known vulnerabilities of what the bills of materials in dist/sbom name: `make audit`.

OSV (https://osv.dev) is asked, which has the advisories of PyPI, Debian and Ubuntu. Only names and versions go out.
What cannot be looked up is a failure, never silence: a service that does not answer, one that does not know of a
vulnerability that every list has, and a component that belongs to no list.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx2

from tools.supply import sbom

SERVICE = "https://api.osv.dev"
SERVICE_VARIABLE = "AUDIT_URL"
ACCEPTED = Path(__file__).parent / "accepted.txt"

FOUND, UNKNOWN = 1, 2
_BATCH = 500
_TIMEOUT_S = 60
_UNLISTED = ("pkg:generic/tritonserver@",)
"""NVIDIA's own; its advisories are in NVIDIA's bulletins, which docs/operations.md names."""


class AuditError(RuntimeError):
    """A sentence on why nothing can be said."""


@dataclass(frozen=True, order=True)
class Package:
    """As OSV names it."""

    ecosystem: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.ecosystem})"


KNOWN_BAD = Package("PyPI", "jinja2", "2.4.1")
"""Its holes have been public since 2014."""


def main() -> int:
    argparse.ArgumentParser(prog="make audit", description=__doc__, allow_abbrev=False).parse_args()
    service = os.environ.get(SERVICE_VARIABLE) or SERVICE
    try:
        return audit(sbom.FOLDER, service, accepted(ACCEPTED.read_text("utf-8")))
    except AuditError as error:
        print(f"not audited: {error}", file=sys.stderr)
        return UNKNOWN


def audit(folder: Path, service: str, accept: Mapping[str, str]) -> int:
    """0 where nothing is known of any package but what is accepted, else FOUND. Raises AuditError."""
    wanted = packages_in(folder)
    known = vulnerabilities([KNOWN_BAD, *wanted], service)
    if not known.pop(KNOWN_BAD, None):
        raise AuditError(f"{service} knows of no vulnerability of {KNOWN_BAD}, so its answers mean nothing")
    open_ones = {package: sorted(set(ids) - accept.keys()) for package, ids in sorted(known.items())}
    for package, ids in open_ones.items():
        if ids:
            print(f"{package} in {', '.join(wanted[package])}: {', '.join(ids)}")
    unused = sorted(accept.keys() - {each for ids in known.values() for each in ids})
    if unused:
        print(f"accepted, but of no package any more: {', '.join(unused)}")
    hit = sum(map(bool, open_ones.values()))
    documents = sorted({name for names in wanted.values() for name in names})
    print(f"{len(wanted)} packages of {', '.join(documents)}: {hit} with known vulnerabilities")
    if not any(name.startswith("image-") for name in documents):
        print("no image was audited: none is built here; `make image` builds them")
    return FOUND if hit else 0


def packages_in(folder: Path) -> dict[Package, list[str]]:
    """Each package of the documents with the names of those that have it. Raises AuditError."""
    found: dict[Package, set[str]] = {}
    strange: list[str] = []
    paths = sorted(folder.glob(f"*{sbom.ENDING}"))
    if not paths:
        raise AuditError("there is no bill of materials: run `make sbom`")
    for path in paths:
        for component in json.loads(path.read_text("utf-8"))["components"]:
            purl = component.get("purl", "")
            if purl.startswith(_UNLISTED):
                continue
            package = package_of(purl)
            if package is None:
                strange.append(f"{component['name']} in {path.name}")
            else:
                found.setdefault(package, set()).add(path.name.removesuffix(sbom.ENDING))
    if strange:
        raise AuditError(f"no list of vulnerabilities is known for {', '.join(strange[:5])}")
    return {package: sorted(names) for package, names in found.items()}


def package_of(purl: str) -> Package | None:
    """None where OSV has no list for it. Debian's and Ubuntu's go by source package."""
    parts = urlsplit(purl)
    kind, _, rest = parts.path.partition("/")
    where, _, version = rest.rpartition("@")
    if kind == "pypi" and where:
        return Package("PyPI", unquote(where), unquote(version))
    qualifiers = parse_qs(parts.query)
    source, _, source_version = qualifiers.get("upstream", [""])[0].rpartition("@")
    ecosystem = _system(qualifiers.get("distro", [""])[0])
    return Package(ecosystem, source, source_version) if kind == "deb" and source and ecosystem else None


def vulnerabilities(packages: Sequence[Package], service: str) -> dict[Package, list[str]]:
    """The ids of what is known of each; none for those of which nothing is. Raises AuditError."""
    found: dict[Package, list[str]] = {}
    for start in range(0, len(packages), _BATCH):
        for package, ids in _asked(packages[start : start + _BATCH], service):
            found.setdefault(package, []).extend(ids)
    return found


def accepted(text: str) -> dict[str, str]:
    """Id -> reason, one a line. Raises AuditError for one without a reason."""
    found = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split(maxsplit=1)
        if len(words) == 1:
            raise AuditError(f"{ACCEPTED.name} accepts {words[0]} without a reason: write one behind it")
        if words:
            found[words[0]] = words[1]
    return found


def _asked(packages: Sequence[Package], service: str) -> Iterator[tuple[Package, list[str]]]:
    """Page by page: what has more is asked again."""
    pages = [(package, "") for package in packages]
    while pages:
        queries = [_query(package, token) for package, token in pages]
        results = _post(f"{service.rstrip('/')}/v1/querybatch", {"queries": queries}, service).get("results", [])
        if len(results) != len(queries):
            raise AuditError(f"{service} gave {len(results)} answers to {len(queries)} questions")
        more = []
        for (package, _), result in zip(pages, results, strict=True):
            ids = [one["id"] for one in result.get("vulns", [])]
            if ids:
                yield package, ids
            if result.get("next_page_token"):
                more.append((package, result["next_page_token"]))
        pages = more


def _query(package: Package, token: str) -> dict[str, Any]:
    query = {"package": {"ecosystem": package.ecosystem, "name": package.name}, "version": package.version}
    return query | ({"page_token": token} if token else {})


def _post(url: str, body: object, service: str) -> dict[str, Any]:
    try:
        answer = httpx2.post(url, json=body, timeout=_TIMEOUT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise AuditError(
            f"{service} cannot be reached ({error}); run this where it can, or set {SERVICE_VARIABLE} to a mirror"
        ) from error
    if answer.status_code != httpx2.codes.OK:
        raise AuditError(f"{service} answered with HTTP status {answer.status_code}")
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AuditError(f"{service} gave no answer of OSV's form")
    return found


def _system(distribution: str) -> str:
    """OSV's name of a distribution: debian-12 -> Debian:12, ubuntu-24.04 -> Ubuntu:24.04:LTS."""
    if debian := re.fullmatch(r"debian-(\d+)", distribution):
        return f"Debian:{debian[1]}"
    if ubuntu := re.fullmatch(r"ubuntu-(\d[02468]\.04)|ubuntu-(\d+\.\d+)", distribution):
        return f"Ubuntu:{ubuntu[1]}:LTS" if ubuntu[1] else f"Ubuntu:{ubuntu[2]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
