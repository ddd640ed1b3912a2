"""Bills of materials in CycloneDX 1.6, as JSON in dist/sbom: `make sbom`.

One for each lock file of requirements/, by cyclonedx-py, and one for each image that is built on this machine, of what
is installed in it. The same input gives the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tools.images import build

ROOT = build.ROOT
FOLDER = ROOT / "dist" / "sbom"
ENDING = ".cdx.json"
LOCKS = ROOT / "requirements"
TOGETHER = {"server": ("server", "cuda")}
"""Lock files that one environment has; cuda.txt is what torch brings along in the image."""

_BIN = ROOT / ".cache" / "sbom-venv" / "bin"
_VERSION = "1.6"
_VALIDATE = f"""\
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.from_version("{_VERSION}")).validate_str(sys.stdin.read())
sys.exit(str(error) if error else 0)
"""
_QUIET = {"PYTHONWARNINGS": "ignore"}
_RUN_S = 300

Document = dict[str, Any]


class SbomError(RuntimeError):
    """A sentence."""


@dataclass(frozen=True)
class Engine:
    """A container engine: its command, such as `podman --root=...`, and its environment."""

    command: Sequence[str]
    environment: Mapping[str, str] | None = None

    def has(self, image: str) -> bool:
        return self._run("image", "inspect", image).returncode == 0

    def inventory(self, image: str) -> dict[str, Any]:
        """What `inventory.py` finds in it, without a network. Raises SbomError."""
        code = (Path(__file__).parent / "inventory.py").read_text("utf-8")
        done = self._run("run", "--rm", "--network=none", "--entrypoint=python3", image, "-c", code)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise SbomError(f"what is in the image {image} could not be read: {last}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_RUN_S,
            check=False,
        )


def main() -> int:
    options = _parser().parse_args()
    tag = options.tag or build.version()
    images = [build.Build(options.registry, tag).image(target) for target in build.IMAGES]
    try:
        write(images, find_engine(os.environ))
    except SbomError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write(images: Sequence[str], engine: Engine | str, folder: Path = FOLDER) -> None:
    """Writes all documents anew and says which. `engine` may be a sentence on why there is none. Raises SbomError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in environments():
        _told(name, of_lock(name), folder)
    for image in images:
        if isinstance(engine, str):
            print(f"left out: the image {image}, because {engine}")
        elif not engine.has(image):
            print(f"left out: the image {image}, which is not built here; `make image` builds it")
        else:
            _told(file_name(image), of_image(image, engine.inventory(image)), folder)


def environments() -> list[str]:
    inside = {lock for name, locks in TOGETHER.items() for lock in locks if lock != name}
    return sorted(path.stem for path in LOCKS.glob("*.txt") if path.stem not in inside)


def of_lock(name: str) -> Document:
    """The document of one environment. Raises SbomError."""
    locks = [(LOCKS / f"{lock}.txt").read_text("utf-8") for lock in TOGETHER.get(name, (name,))]
    command = [
        "requirements",
        "--output-reproducible",
        f"--sv={_VERSION}",
        "--of=JSON",
        "--pyproject=pyproject.toml",
        "-",
    ]
    document: Document = json.loads(_tool("cyclonedx-py", command, "".join(locks)))
    return document


def of_image(image: str, found: Mapping[str, Any]) -> Document:
    """The document of an image with what `inventory.py` found in it. Raises SbomError."""
    system = found["system"]
    distribution = f"{system['id']}-{system['version']}"
    components = [_debian(one, system["id"], distribution) for one in found["debian"]]
    components += [_python(one) for one in found["python"]]
    if found["triton"]:
        components.append(_component("tritonserver", found["triton"], f"pkg:generic/tritonserver@{found['triton']}"))
    unique = {one["bom-ref"]: one for one in components}
    name, _, version = image.rpartition(":")
    document: Document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": _VERSION,
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": image, "name": name, "version": version},
            "properties": [{"name": "triton-chat:distribution", "value": distribution}],
        },
        "components": [unique[key] for key in sorted(unique)],
    }
    _tool("python", ["-c", _VALIDATE], json.dumps(document))
    return document


def file_name(image: str) -> str:
    return "image-" + image.rpartition("/")[2].replace(":", "-")


def find_engine(environment: Mapping[str, str]) -> Engine | str:
    """One that can run a container, or why there is none."""
    found = build.find_engine(environment)
    if isinstance(found, str):
        return found.splitlines()[0]
    if Path(found[0]).name == "buildah":
        return "buildah starts no containers: use docker or podman (CONTAINER_ENGINE names one)"
    return Engine(found)


def _debian(package: Mapping[str, str], system: str, distribution: str) -> Document:
    name, version = package["name"], package["version"]
    source = f"{package['source']}@{package['source_version']}"
    where = f"arch={package['architecture']}&distro={quote(distribution)}&upstream={quote(source, safe='')}"
    return _component(name, version, f"pkg:deb/{system}/{quote(name)}@{quote(version, safe='')}?{where}")


def _python(package: Mapping[str, str]) -> Document:
    name, version = package["name"], package["version"]
    normal = name.lower().replace("_", "-").replace(".", "-")
    return _component(name, version, f"pkg:pypi/{quote(normal)}@{quote(version, safe='')}")


def _component(name: str, version: str, purl: str) -> Document:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _tool(program: str, arguments: Sequence[str], text: str) -> str:
    """What a program of the environment of requirements/sbom.txt makes of `text`. Raises SbomError."""
    if not (_BIN / program).exists():
        raise SbomError(f"{program} of requirements/sbom.txt is missing: run `make sbom`, which installs it")
    done = subprocess.run(
        [str(_BIN / program), *arguments],
        input=text,
        env={**os.environ, **_QUIET},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SbomError(f"{program} failed: {last}")
    return done.stdout


def _told(name: str, document: Document, folder: Path) -> None:
    path = folder / f"{name}{ENDING}"
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", "utf-8")
    print(f"{path.name}: {len(document['components'])} components")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make sbom", description=__doc__, allow_abbrev=False)
    parser.add_argument("--registry", default="", help="of the images, as for `make image`")
    parser.add_argument("--tag", default="", help="of the images; the version of pyproject.toml by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
