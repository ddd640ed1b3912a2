"""Questions about rendered objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Object = dict[str, Any]
Labels = Mapping[str, str]

_WITH_TEMPLATE = ("Deployment", "StatefulSet", "DaemonSet", "Job")
_COMPONENT = "app.kubernetes.io/component"
_TRACK = "triton-chat/track"


class DuplicateKeyError(yaml.YAMLError):
    """A key stands twice in one map; YAML forbids it, and PyYAML takes the last one."""


class _Loader(yaml.CSafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise DuplicateKeyError(f"line {node.start_mark.line + 1}: {sorted(twice)} stand twice in one map")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Pod:
    """A pod, or the template of pods, and what it belongs to."""

    owner: Object
    metadata: Object
    spec: Object

    @property
    def name(self) -> str:
        return f"{self.owner['kind']} {name(self.owner)}"

    @property
    def labels(self) -> Labels:
        return dict(self.metadata.get("labels", {}))

    @property
    def annotations(self) -> Labels:
        return dict(self.metadata.get("annotations", {}))

    @property
    def component(self) -> str:
        return self.labels.get(_COMPONENT, "")

    @property
    def track(self) -> str:
        return self.labels.get(_TRACK, "")

    @property
    def is_test(self) -> bool:
        return is_test(self.owner)

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, container: str) -> Object:
        return next(one for one in self.containers if one["name"] == container)

    def volume(self, volume: str) -> Object:
        return next(one for one in self.spec["volumes"] if one["name"] == volume)


class Objects(list[Object]):
    """The objects of one rendering."""

    def of(self, *kinds: str) -> list[Object]:
        return [one for one in self if one["kind"] in kinds]

    def one(self, kind: str, ending: str) -> Object:
        """The only object of a kind whose name ends so."""
        found = [one for one in self.of(kind) if name(one).endswith(ending)]
        assert len(found) == 1, f"{kind} *{ending}: {[name(one) for one in found]}"
        return found[0]

    @property
    def pods(self) -> list[Pod]:
        return [pod for one in self for pod in _pods_of(one)]

    def pods_of(self, component: str, track: str | None = None) -> list[Pod]:
        """The long-running pods of a component, of one track or of both."""
        return [
            pod for pod in self.pods if pod.component == component and not pod.is_test and track in (None, pod.track)
        ]

    def pod(self, component: str, track: str = "stable") -> Pod:
        (pod,) = self.pods_of(component, track)
        return pod

    def names(self, kind: str) -> set[str]:
        return {name(one) for one in self.of(kind)}


def parsed(text: str) -> Objects:
    """The objects of a stream of YAML documents. Raises DuplicateKeyError."""
    return Objects(document for document in yaml.load_all(text, Loader=_Loader) if document)


def name(one: Object) -> str:
    return str(one["metadata"]["name"])


def label(one: Object) -> str:
    """Kind and name, for messages."""
    return f"{one['kind']} {name(one)}"


def is_test(one: Object) -> bool:
    return "test" in one["metadata"].get("annotations", {}).get("helm.sh/hook", "")


def env(container: Object) -> dict[str, Any]:
    """A container's variables: the value, or where it comes from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}


def flags(container: Object) -> dict[str, str]:
    """`--name=value` arguments, and `--name value`."""
    words = [*container.get("command", []), *container.get("args", [])]
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found[flag] = value if equals else following
    return found


def selects(selector: Mapping[str, Any] | None, labels: Labels) -> bool:
    """Whether a LabelSelector, or the plain map of a Service, matches. An empty one matches all, None nothing."""
    if selector is None:
        return False
    if not {"matchLabels", "matchExpressions"} & set(selector):
        return all(labels.get(key) == value for key, value in selector.items())
    plain = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in plain.items()) and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def strings(value: object) -> Iterator[str]:
    """All strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from strings(item)


def found(value: object, key: str) -> Iterator[Any]:
    """Everything under `key`, at any depth."""
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        for item in value.values():
            yield from found(item, key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from found(item, key)


def group_templates(one: Object) -> list[Object]:
    """Of a LeaderWorkerSet: the leader's and the workers'."""
    group = one["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


def _holds(expression: Mapping[str, Any], labels: Labels) -> bool:
    value = labels.get(expression["key"])
    operator = expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (value is not None) == (operator == "Exists")
    assert operator in ("In", "NotIn"), operator
    return (value in expression["values"]) == (operator == "In")


def _pods_of(one: Object) -> Iterator[Pod]:
    if one["kind"] == "Pod":
        yield Pod(one, one["metadata"], one["spec"])
    elif one["kind"] in _WITH_TEMPLATE:
        template = one["spec"]["template"]
        yield Pod(one, template["metadata"], template["spec"])
    elif one["kind"] == "LeaderWorkerSet":
        for template in group_templates(one):
            yield Pod(one, template["metadata"], template["spec"])
    elif one["kind"] == "CronJob":
        template = one["spec"]["jobTemplate"]["spec"]["template"]
        yield Pod(one, template["metadata"], template["spec"])
