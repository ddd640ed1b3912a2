"""Bills of materials and the look-up of known vulnerabilities, with a service on a loopback port."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.test_requirements import pins
from tools.images import build
from tools.supply import audit, inventory, sbom
from tools.supply.audit import KNOWN_BAD, AuditError, Package

STATUS = """\
Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.0.15-1~deb12u1
Description: Secure Sockets Layer toolkit
 Version: 9 in a description is none

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libgcc-s1
Status: install ok installed
Architecture: amd64
Source: gcc-12 (12.2.0-14)
Version: 12.2.0-14+b1

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b7
"""
FOUND = {
    "system": {"id": "debian", "version": "12"},
    "debian": inventory.debian_packages(STATUS),
    "python": [{"name": "Jinja2", "version": "3.1.6"}, {"name": "typing_extensions", "version": "4.16.0"}],
    "triton": "2.64.0",
}


class Osv:
    """The service's answers: `known` by package, `pages` of more, or an HTTP status alone."""

    def __init__(self) -> None:
        self.known: dict[Package, list[str]] = {KNOWN_BAD: ["PYSEC-2014-8"]}
        self.more: dict[Package, list[str]] = {}
        self.status = 200
        self.answer: object = None
        self.asked: list[list[Package]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
                answer = {"results": fake.results(queries)} if fake.answer is None else fake.answer
                self.send_response(fake.status if self.path == "/v1/querybatch" else 404)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def results(self, queries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        packages = [Package(one["package"]["ecosystem"], one["package"]["name"], one["version"]) for one in queries]
        self.asked.append(packages)
        return [self._result(package, "page_token" in one) for package, one in zip(packages, queries, strict=True)]

    def _result(self, package: Package, is_second: bool) -> dict[str, Any]:
        ids = (self.more if is_second else self.known).get(package, [])
        found: dict[str, Any] = {"vulns": [{"id": each} for each in ids]} if ids else {}
        return found | ({"next_page_token": "x"} if package in self.more and not is_second else {})


@pytest.fixture
def osv() -> Iterator[Osv]:
    fake = Osv()
    thread = threading.Thread(target=fake.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of two environments and an image."""
    write(tmp_path, "gateway", "pkg:pypi/jinja2@3.1.6", "pkg:pypi/openai@2.1")
    write(tmp_path, "server", "pkg:pypi/jinja2@3.1.6")
    write(
        tmp_path,
        "image-triton-chat-1",
        "pkg:deb/debian/libssl3@3.0.15-1~deb12u1?arch=amd64&distro=debian-12&upstream=openssl%403.0.15-1~deb12u1",
        "pkg:generic/tritonserver@2.64.0",
    )
    return tmp_path


def write(folder: Path, name: str, *purls: str) -> None:
    components = [{"name": purl.rpartition("/")[2], "purl": purl} for purl in purls]
    (folder / f"{name}{sbom.ENDING}").write_text(json.dumps({"components": components}), "utf-8")


JINJA = Package("PyPI", "jinja2", "3.1.6")
OPENSSL = Package("Debian:12", "openssl", "3.0.15-1~deb12u1")


class TestAudit:
    def test_nothing_known(self, osv: Osv, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert audit.audit(folder, osv.url, {}) == 0
        assert capsys.readouterr().out == (
            "3 packages of gateway, image-triton-chat-1, server: 0 with known vulnerabilities\n"
        )
        (asked,) = osv.asked
        assert asked[0] == KNOWN_BAD
        assert set(asked[1:]) == {JINJA, Package("PyPI", "openai", "2.1"), OPENSSL}

    def test_what_is_known_is_said_and_fails(self, osv: Osv, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        osv.known |= {JINJA: ["GHSA-2", "GHSA-1"], OPENSSL: ["DSA-1"]}
        assert audit.audit(folder, osv.url, {}) == audit.FOUND
        out = capsys.readouterr().out
        assert "jinja2 3.1.6 (PyPI) in gateway, server: GHSA-1, GHSA-2\n" in out
        assert "openssl 3.0.15-1~deb12u1 (Debian:12) in image-triton-chat-1: DSA-1\n" in out
        assert "2 with known vulnerabilities" in out

    def test_all_pages_are_read(self, osv: Osv, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        osv.more[JINJA] = ["GHSA-9"]
        assert audit.audit(folder, osv.url, {}) == audit.FOUND
        assert "GHSA-9" in capsys.readouterr().out

    def test_all_batches_are_asked(self, osv: Osv, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(audit, "_BATCH", 1)
        osv.known[OPENSSL] = ["DSA-1"]
        assert audit.audit(folder, osv.url, {}) == audit.FOUND
        assert [len(batch) for batch in osv.asked] == [1, 1, 1, 1]

    def test_what_is_accepted_passes_and_is_dropped_when_it_is_gone(
        self, osv: Osv, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        osv.known[JINJA] = ["GHSA-1"]
        assert audit.audit(folder, osv.url, {"GHSA-1": "no templates of users", "GHSA-0": "old"}) == 0
        assert "accepted, but of no package any more: GHSA-0\n" in capsys.readouterr().out

    def test_an_audit_without_images_says_so(
        self, osv: Osv, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path, "gateway", "pkg:pypi/jinja2@3.1.6")
        assert audit.audit(tmp_path, osv.url, {}) == 0
        assert "no image was audited" in capsys.readouterr().out


class TestSilenceIsNoPass:
    def test_a_service_that_is_not_there(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sbom, "FOLDER", folder)
        monkeypatch.setattr(sys, "argv", ["audit"])
        monkeypatch.setenv(audit.SERVICE_VARIABLE, "http://127.0.0.1:9")
        assert audit.main() == audit.UNKNOWN
        error = capsys.readouterr().err
        assert error.startswith("not audited: http://127.0.0.1:9 cannot be reached (")
        assert len(error.splitlines()) == 1

    @pytest.mark.parametrize("address", ["file:///etc/passwd", "osv.example.com", "http://[::1"])
    def test_an_address_that_is_none(self, folder: Path, address: str) -> None:
        with pytest.raises(AuditError, match="cannot be reached"):
            audit.audit(folder, address, {})

    @pytest.mark.parametrize("status", [403, 429, 500])
    def test_a_service_that_refuses(self, osv: Osv, folder: Path, status: int) -> None:
        osv.status = status
        with pytest.raises(AuditError, match=f"HTTP status {status}"):
            audit.audit(folder, osv.url, {})

    def test_a_service_that_knows_nothing(self, osv: Osv, folder: Path) -> None:
        """As a mirror without the advisories answers."""
        osv.known.clear()
        with pytest.raises(AuditError, match="knows of no vulnerability of jinja2"):
            audit.audit(folder, osv.url, {})

    @pytest.mark.parametrize("answer", [[], {}, {"results": []}, "welcome"])
    def test_a_service_that_answers_something_else(self, osv: Osv, folder: Path, answer: object) -> None:
        osv.answer = answer
        with pytest.raises(AuditError, match="answer"):
            audit.audit(folder, osv.url, {})

    @pytest.mark.parametrize(
        "purl",
        [
            "",
            "pkg:npm/left-pad@1",
            "pkg:pypi/jinja2",
            "pkg:deb/debian/x@1?distro=debian-12",
            "pkg:deb/x/x@1?distro=x-1&upstream=x%401",
        ],
    )
    def test_a_component_of_no_list(self, osv: Osv, folder: Path, purl: str) -> None:
        write(folder, "more", purl)
        with pytest.raises(AuditError, match=r"no list of vulnerabilities is known for .* in more"):
            audit.audit(folder, osv.url, {})

    def test_no_documents(self, osv: Osv, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="make sbom"):
            audit.audit(tmp_path, osv.url, {})

    def test_an_accepted_one_needs_a_reason(self) -> None:
        assert audit.accepted("# words\n\nGHSA-1 not reached # more\n") == {"GHSA-1": "not reached "}
        with pytest.raises(AuditError, match="GHSA-2 without a reason"):
            audit.accepted("GHSA-2\n")


@pytest.mark.parametrize(
    ("distribution", "ecosystem"),
    [
        ("debian-12", "Debian:12"),
        ("ubuntu-24.04", "Ubuntu:24.04:LTS"),
        ("ubuntu-25.10", "Ubuntu:25.10"),
        ("ubuntu-25.04", "Ubuntu:25.04"),
        ("alpine-3.20", ""),
        ("", ""),
    ],
)
def test_the_systems_of_the_images(distribution: str, ecosystem: str) -> None:
    assert audit._system(distribution) == ecosystem


class TestInventory:
    def test_debian_packages_go_by_their_source(self) -> None:
        found = [(one["name"], one["source"], one["source_version"]) for one in inventory.debian_packages(STATUS)]
        assert found == [
            ("libssl3", "openssl", "3.0.15-1~deb12u1"),
            ("libgcc-s1", "gcc-12", "12.2.0-14"),
            ("bash", "bash", "5.2.15-2+b7"),
        ]

    def test_it_runs_as_a_text_with_nothing_around(self) -> None:
        code = Path(inventory.__file__).read_text("utf-8")
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        assert "pytest" in [one["name"] for one in json.loads(done.stdout)["python"]]


@pytest.mark.agents
class TestDocuments:
    def test_an_environment_has_what_its_lock_file_pins(self) -> None:
        document = sbom.of_lock("server")
        found = {one["name"]: one["version"] for one in document["components"]}
        wanted = pins("server") | pins("cuda")
        assert {name: f"=={version}" for name, version in found.items()} == wanted
        assert (document["metadata"]["component"]["name"], document["specVersion"]) == ("triton-chat", "1.6")
        assert all(audit.package_of(one["purl"]) for one in document["components"])

    def test_an_image_has_what_is_installed(self) -> None:
        """And the format is checked before it is written."""
        document = sbom.of_image("r.example.com/triton-chat:1", FOUND)
        packages = {audit.package_of(one["purl"]) for one in document["components"]}
        assert packages >= {OPENSSL, Package("PyPI", "jinja2", "3.1.6"), Package("PyPI", "typing-extensions", "4.16.0")}
        assert {"type": "container", "name": "r.example.com/triton-chat", "version": "1"}.items() <= document[
            "metadata"
        ]["component"].items()
        assert [one["name"] for one in document["components"] if "generic" in one["purl"]] == ["tritonserver"]

    def test_the_same_input_gives_the_same_file(self) -> None:
        assert sbom.of_image("x:1", FOUND) == sbom.of_image("x:1", FOUND)
        assert not {"timestamp", "serialNumber"} & {*found_keys(sbom.of_lock("ui"))}

    def test_a_wrong_document_is_refused(self) -> None:
        with pytest.raises(sbom.SbomError, match="failed"):
            sbom._tool("python", ["-c", sbom._VALIDATE], json.dumps({"bomFormat": "CycloneDX", "wrong": 1}))


def found_keys(document: sbom.Document) -> list[str]:
    return [*document, *document["metadata"]]


def test_every_lock_file_is_in_one_document() -> None:
    together = {lock for locks in sbom.TOGETHER.values() for lock in locks}
    assert {*sbom.environments(), *together} == {path.stem for path in sbom.LOCKS.glob("*.txt")}


def test_what_is_left_out_is_said_and_nothing_old_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sbom, "of_lock", lambda name: {"components": [], "name": name})
    (tmp_path / "sbom").mkdir()
    (tmp_path / "sbom" / f"old{sbom.ENDING}").touch()
    sbom.write(["triton-chat:1"], "no container engine answers here", tmp_path / "sbom")
    written = [path.name.removesuffix(sbom.ENDING) for path in (tmp_path / "sbom").iterdir()]
    assert sorted(written) == sbom.environments()
    assert "left out: the image triton-chat:1, because no container engine answers here" in capsys.readouterr().out


def test_an_engine_that_starts_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_engine", lambda _: ["/usr/bin/buildah"])
    assert "buildah starts no containers" in str(sbom.find_engine({}))


def test_an_image_that_cannot_be_read_is_said() -> None:
    engine = sbom.Engine(["python3", "-c", "import sys; sys.exit('cannot start')"])
    assert not engine.has("x:1")
    with pytest.raises(sbom.SbomError, match="what is in the image x:1 could not be read: cannot start"):
        engine.inventory("x:1")
