"""Reads Triton's `/metrics` page, for `triton-chat status`."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from triton_chat.errors import EngineError, ServerUnavailableError

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class MetricsPage:
    """The samples of one read. Source of the format: Prometheus text exposition format 0.0.4."""

    samples: tuple[Sample, ...]
    read_at: float = field(default_factory=time.monotonic)
    """Seconds on the `time.monotonic` clock."""

    def total(self, name: str, **labels: str) -> float | None:
        """Sum of the samples of that name which carry these labels; None if there are none."""
        values = [
            sample.value
            for sample in self.samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        ]
        return sum(values) if values else None

    def rate_since(self, earlier: MetricsPage, name: str, **labels: str) -> float | None:
        """Increase of a counter per second since an earlier read; None if it is unknown or the server restarted."""
        before, after = earlier.total(name, **labels), self.total(name, **labels)
        elapsed = self.read_at - earlier.read_at
        if before is None or after is None or after < before or elapsed <= 0:
            return None
        return (after - before) / elapsed


def parse(text: str) -> MetricsPage:
    """Read a metrics page; lines that are not samples are skipped."""
    return MetricsPage(tuple(_samples(text)))


def _samples(text: str) -> Iterator[Sample]:
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match.groups()
        try:
            number = float(value)
        except ValueError:
            continue
        yield Sample(name, {key: _unescape(text) for key, text in _LABEL.findall(labels or "")}, number)


def _unescape(text: str) -> str:
    return re.sub(r'\\[\\"n]', lambda match: _ESCAPES[match.group()], text)


def fetch(url: str, timeout: float = 5.0) -> MetricsPage:
    """Read the metrics page at `url`; `timeout` in seconds.

    Raises:
        ServerUnavailableError: nobody answers there.
        EngineError: an answer that is not a metrics page.
    """
    if not url.startswith(("http://", "https://")):
        raise ServerUnavailableError(f"{url} is not an address of a metrics page: it must start with http://")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310 - the scheme is checked above
            return parse(response.read().decode())
    except urllib.error.HTTPError as error:
        raise EngineError(f"{url} answers with HTTP status {error.code}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerUnavailableError(
            f"cannot read metrics at {url}: {getattr(reason, 'strerror', None) or reason}"
        ) from error
