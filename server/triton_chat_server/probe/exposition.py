"""Reads the few samples that a probe needs from Prometheus's text format; no library, since a probe must be quick."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)", re.MULTILINE)
_MODEL = re.compile(r'(?:^|,)model="([^"]*)"')


def by_model(text: str, family: str) -> Mapping[str, float]:
    """The value of a gauge for each value of its label `model`, which needs no escapes."""
    found = {}
    for sample in _SAMPLE.finditer(text):
        if sample["name"] == family and (model := _MODEL.search(sample["labels"])):
            found[model[1]] = float(sample["value"])
    return found
