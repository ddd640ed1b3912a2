"""What others' tools say of the chart."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.helm.cases import ADD_ONS, Case
from tests.helm.engines import Helm4
from tests.helm.paths import CHART, CHECKOV, ROOT, installed

CHECKOV_CONFIG = ROOT / "deploy" / "helm" / "checkov.yaml"
YAMLLINT_CONFIG = ROOT / "deploy" / "helm" / "yamllint.yaml"
MOST_SKIPS = 5
OF_PEOPLE = ("comments", "comments-indentation", "empty-lines", "indentation", "line-length", "new-line-at-end-of-file")
"""Rules for what a person reads and writes; rendered text keeps the others."""


@pytest.fixture(scope="module")
def yamllint() -> YamlLintConfig:
    return YamlLintConfig(YAMLLINT_CONFIG.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def yamllint_of_machines() -> YamlLintConfig:
    rules = yaml.safe_load(YAMLLINT_CONFIG.read_text(encoding="utf-8"))
    rules["rules"] |= dict.fromkeys((*OF_PEOPLE, "trailing-spaces"), "disable")
    return YamlLintConfig(yaml.safe_dump(rules))


def problems(text: str, config: YamlLintConfig, path: str) -> list[str]:
    """`path`, within the chart, decides which rules are off."""
    return [f"{path}:{one.line}: {one.desc} ({one.rule})" for one in linter.run(text, config, path)]


def test_checkov_fails_nothing_in_the_default_rendering(helm4: Helm4, tmp_path: Path):
    manifest = tmp_path / "default.yaml"
    manifest.write_text(yaml.safe_dump_all(helm4.render({})), encoding="utf-8")
    done = subprocess.run(
        [str(installed(CHECKOV)), "--config-file", str(CHECKOV_CONFIG), "--output=json", f"--file={manifest}"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    failed = [
        f"{check['check_id']} {check['check_name']}: {check['resource']}"
        for check in report["results"]["failed_checks"]
    ]
    assert failed == []
    assert report["summary"]["passed"] > 300
    assert report["summary"]["parsing_errors"] == 0


def test_every_skip_has_a_reason():
    lines = CHECKOV_CONFIG.read_text(encoding="utf-8").splitlines()
    skips = [index for index, line in enumerate(lines) if line.startswith("  - CKV")]
    assert [lines[index][4:] for index in skips] == yaml.safe_load("\n".join(lines))["skip-check"]
    assert 0 < len(skips) <= MOST_SKIPS
    assert all(lines[index - 1].startswith("  # ") for index in skips)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CHART.rglob("*.y*ml")) if CHART / "templates" not in path.parents],
    ids=lambda path: str(path.relative_to(CHART)),
)
def test_yamllint_likes_what_people_write(path: Path, yamllint: YamlLintConfig):
    assert problems(path.read_text(encoding="utf-8"), yamllint, str(path.relative_to(CHART))) == []


def test_yamllint_likes_what_is_rendered(case: Case, helm4: Helm4, yamllint_of_machines: YamlLintConfig):
    for path, text in helm4.texts(case.values, apis=ADD_ONS).items():
        if path.endswith(".yaml"):
            assert problems(text, yamllint_of_machines, path) == []
