"""The lock files belong together: what is tested is what is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
IMAGES = ("server", "gateway", "ui")


def pins(name: str) -> dict[str, str]:
    """Package -> version, of requirements/<name>.txt."""
    found = [Requirement(line) for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines()]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in found}


@pytest.mark.parametrize("name", ["dev", "cuda", *IMAGES])
def test_every_package_is_pinned(name: str) -> None:
    assert pins(name)
    for package, specifier in pins(name).items():
        assert specifier.startswith("=="), package
        assert "+" not in specifier, f"{package}: a build of one machine"


@pytest.mark.parametrize("name", IMAGES)
def test_the_images_get_the_versions_that_are_tested(name: str) -> None:
    assert pins(name).items() <= pins("dev").items()


def test_the_page_brings_no_client() -> None:
    assert {"tritonclient", "grpcio"}.isdisjoint(pins("ui"))


def test_only_an_image_gets_the_libraries_of_a_gpu() -> None:
    assert pins("cuda").keys().isdisjoint(pins("dev"))
