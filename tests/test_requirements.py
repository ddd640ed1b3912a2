"""The lock files belong together: what is tested is what is shipped."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.helm.paths import CHECKOV, installed

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
IMAGES = ("server", "gateway", "ui")
PYTHONS = ("3.11.2", "3.12.3")
"""Of Debian 12 and Ubuntu 24.04; the one that runs this may be newer, and so take what they cannot."""


def pins(name: str) -> dict[str, str]:
    """Package -> version, of requirements/<name>.txt."""
    found = [Requirement(line) for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines()]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in found}


def refused(distributions: Iterable[metadata.Distribution]) -> list[str]:
    """Those that one of PYTHONS cannot install."""
    wanted = {one.name: SpecifierSet(one.metadata.get("Requires-Python") or "") for one in distributions}
    return [name for name, pythons in wanted.items() if not all(map(pythons.contains, PYTHONS))]


@pytest.mark.parametrize("name", ["dev", "cuda", "checkov", "agents", "sbom", "vllm", "vllm-image", *IMAGES])
def test_every_package_is_pinned(name: str) -> None:
    assert pins(name)
    for package, specifier in pins(name).items():
        assert specifier.startswith("=="), package
        wanted = (name, package) == ("vllm", "torch")  # vLLM's build for CPUs names that of torch itself
        assert ("+" in specifier) == wanted, f"{package}: a build of one machine"


def test_every_supported_python_can_install_them() -> None:
    assert refused(metadata.distribution(name) for name in pins("dev")) == []


@pytest.mark.helm
def test_every_supported_python_can_install_checkov() -> None:
    (packages,) = installed(CHECKOV).parents[1].glob("lib/python3.*/site-packages")
    assert refused(metadata.distributions(path=[str(packages)])) == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_images_get_the_versions_that_are_tested(name: str) -> None:
    assert pins(name).items() <= pins("dev").items()


def test_the_models_find_the_same_numpy_and_torch_beside_vllm() -> None:
    """tritonserver's Python backend reads arrays of another numpy wrongly."""
    assert pins("vllm")["numpy"] == pins("server")["numpy"]
    assert pins("vllm")["torch"] == f"{pins('server')['torch']}+cpu"


def test_vllm_brings_nothing_that_it_cannot_use_on_a_cpu() -> None:
    assert {"triton", "torchaudio", "torchcodec", "torchvision"}.isdisjoint(pins("vllm"))
    assert [package for package in pins("vllm") if package.startswith(("nvidia-", "cuda-"))] == []


def test_the_image_with_vllm_adds_only_what_the_server_has_and_vllm_has_not() -> None:
    """Its base brings vLLM and all that goes with it."""
    assert pins("vllm-image").items() <= pins("server").items()
    assert pins("vllm-image").keys().isdisjoint(pins("vllm"))
    assert pins("server").keys() <= pins("vllm-image").keys() | pins("vllm").keys()


def test_the_page_brings_no_client() -> None:
    assert {"tritonclient", "grpcio"}.isdisjoint(pins("ui"))


def test_only_an_image_gets_the_libraries_of_a_gpu() -> None:
    assert pins("cuda").keys().isdisjoint(pins("dev"))
