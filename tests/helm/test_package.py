"""The chart as an archive, which is what a registry gets."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import yaml

from tests.helm.cases import ADD_ONS, ci_case
from tests.helm.engines import Helm4
from tests.helm.paths import CHART, ROOT


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Helm4().package(tmp_path_factory.mktemp("package"))


def test_the_archive_has_what_a_user_needs(archive: Path):
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("triton-chat/") for name in opened.getnames()}
    assert {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "templates/NOTES.txt"} <= names
    hidden = {name for name in names if Path(name).name.startswith(".") and Path(name).name != ".helmignore"}
    assert hidden == set()


def test_the_archive_renders_the_same(archive: Path, helm4: Helm4):
    packed = Helm4(archive)
    for name in ("default", "canary", "monitoring"):
        values = ci_case(name).values
        assert packed.render(values, apis=ADD_ONS) == helm4.render(values, apis=ADD_ONS)


def test_versions_agree_with_the_project():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{chart["appVersion"]}"' in project
    assert chart["kubeVersion"] == ">=1.28.0-0"
