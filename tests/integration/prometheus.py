"""A real Prometheus on this machine, which scrapes given targets and evaluates given rules once a second."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from local import ports
from tests.integration.calls import eventually
from tests.monitoring.promtool import program

Series = dict[str, Any]
"""`metric`: its labels; `value`: the time and the value."""


@dataclass(frozen=True)
class Target:
    """`labels` are there before the relabelings, which are Prometheus Operator's."""

    url: str
    labels: Mapping[str, str]
    relabelings: Sequence[Mapping[str, Any]]

    def scrape_config(self) -> dict[str, Any]:
        parts = urlsplit(self.url)
        return {
            "job_name": self.labels["pod"],
            "metrics_path": parts.path,
            "static_configs": [{"targets": [parts.netloc], "labels": dict(self.labels)}],
            "relabel_configs": [
                {re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", key): value for key, value in one.items()}
                for one in self.relabelings
            ],
        }


class Prometheus:
    """Answers of its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.noted_at = 0.0
        """On Prometheus' clock, in seconds."""

    def note_the_time(self) -> None:
        (now,) = self.query("vector(time())")
        self.noted_at = float(now["value"][1])

    def query(self, expression: str) -> list[Series]:
        """The series of an instant query, now. Raises urllib.error.HTTPError for what is no PromQL."""
        return list(self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["result"])

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> set[str]:
        """The names of those that are pending or fire."""
        return {alert["labels"]["alertname"] for alert in self._get("/api/v1/alerts")["alerts"]}

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self._url + path, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)["data"]
        return answer


@contextmanager
def prometheus(folder: Path, rules: Sequence[Mapping[str, Any]], targets: Sequence[Target]) -> Iterator[Prometheus]:
    """Runs it with these groups of rules; where it is missing, the test fails and says what to do."""
    executable = program("prometheus")
    folder.mkdir()
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": list(rules)}), encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [target.scrape_config() for target in targets],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (port,) = ports.choose("127.0.0.1", (0,))
    command = [
        executable,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    server = Prometheus(f"http://127.0.0.1:{port}")

    def started() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        return server.is_ready()

    try:
        eventually(started, within=30)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=30)
