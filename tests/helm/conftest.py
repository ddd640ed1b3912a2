from __future__ import annotations

from pathlib import Path

import pytest

from tests.helm.cases import ADD_ONS, Case, ci_cases
from tests.helm.engines import Helm3, Helm4

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.helm)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `case` runs for every file of ci/."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", ci_cases(), ids=str)


@pytest.fixture(scope="session")
def helm4() -> Helm4:
    return Helm4()


@pytest.fixture(scope="session")
def helm3(tmp_path_factory: pytest.TempPathFactory) -> Helm3:
    return Helm3(tmp_path_factory.mktemp("helm3"))


@pytest.fixture
def rendered(case: Case, helm4: Helm4):
    """The objects of `case` on the newest Kubernetes, with all add-ons."""
    return helm4.render(case.values, apis=ADD_ONS)
