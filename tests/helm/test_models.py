"""Checkpoints and settings of the models, checked against the programs that read them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from chat_engine.config import parse_config
from chat_gateway.settings import PREFIX, GatewaySettings, unknown_variables
from embedder.config import EmbedderConfig
from tests.helm.cases import Case, effective, merged
from tests.helm.engines import Helm4, refusal
from tests.helm.objects import Object, Objects, Pod, env, flags, found, strings
from tests.helm.paths import CHART
from triton_chat_server.fetch.command import _parser as fetch_parser
from triton_chat_server.probe.command import _parser as probe_parser
from triton_chat_server.serve import flags as server_flags
from triton_chat_server.serve.command import _parser as serve_parser
from triton_chat_server.serve.families import POD_IP_VARIABLE

ENGINE_FOLDER = "/etc/triton-chat/engine"
DECIDED_BY_THE_CHART = {"model", "drain_seconds", "adapters"}


def files(objects: Objects, pod: Pod) -> dict[str, str]:
    """The files that the container `triton` finds under /etc/triton-chat, by path."""
    found_files = {}
    for mount in pod.container("triton")["volumeMounts"]:
        source = pod.volume(mount["name"]).get("configMap")
        if source:
            data = objects.one("ConfigMap", source["name"])["data"]
            items = source.get("items") or [{"key": key, "path": key} for key in data]
            found_files |= {f"{mount['mountPath']}/{item['path']}": data[item["key"]] for item in items}
    return found_files


def engines(objects: Objects, pod: Pod) -> dict[str, Any]:
    """The engine settings by model."""
    settings = {path: json.loads(text) for path, text in files(objects, pod).items()}
    return {
        path.rsplit("/", 1)[1].removesuffix(".json"): value
        for path, value in settings.items()
        if path.startswith(f"{ENGINE_FOLDER}/")
    }


def wanted(case: Case, track: str) -> dict[str, tuple[Any, Any]]:
    """(engine, model) of the values, by model."""
    values = effective(case)
    engine, model = values["engine"], values["model"]
    if track == "canary":
        engine, model = merged(values["canary"]["engine"], engine), merged(values["canary"]["model"], model)
    extra = {one["name"]: (one.get("engine", {}), one["model"]) for one in values["extraModels"]}
    return {"chat": (engine, model)} | extra


# --- Engine settings --------------------------------------------------------------------------------------------------


def test_every_model_has_its_settings_whole(case: Case, rendered: Objects):
    for pod in rendered.pods_of("triton"):
        given = engines(rendered, pod)
        expected = wanted(case, pod.track)
        assert given.keys() == expected.keys()
        for model, (engine, _) in expected.items():
            rest = {key: value for key, value in given[model].items() if key not in DECIDED_BY_THE_CHART}
            nodes = effective(case)["triton"]["nodes"]
            of_nodes = {"vllm": engine["vllm"] | {"nnodes": nodes}} if nodes > 1 else {}
            assert rest == engine | of_nodes, f"{pod.name}: {model}"
            assert given[model]["drain_seconds"] == effective(case)["drainSeconds"]


def test_the_engine_takes_the_settings(rendered: Objects):
    for pod in rendered.pods_of("triton"):
        for model, settings in engines(rendered, pod).items():
            parse_config(settings, f"{pod.name}: {model}")


def test_the_embedder_takes_its_settings(rendered: Objects):
    for pod in rendered.pods_of("triton"):
        path = env(pod.container("triton")).get("TRITON_CHAT_EMBEDDINGS_CONFIG")
        if path:
            EmbedderConfig.model_validate(json.loads(files(rendered, pod)[path]))


def test_the_server_finds_the_settings(rendered: Objects):
    for pod in rendered.pods_of("triton"):
        variables = env(pod.container("triton"))
        assert variables["TRITON_CHAT_ENGINE_CONFIG"] == ENGINE_FOLDER
        assert "TRITON_CHAT_MODEL" not in variables


def test_whole_numbers_stay_whole_and_nested_settings_stay_nested(helm4: Helm4):
    """Helm reads numbers as floating point and writes large ones as 1e+06."""
    objects = helm4.render({"engine": {"kv_cache_tokens": 12345678, "memory_fraction": 0.85, "prefix_caching": False}})
    settings = engines(objects, objects.pod("triton"))["chat"]
    assert (settings["kv_cache_tokens"], settings["memory_fraction"]) == (12345678, 0.85)
    assert settings["prefix_caching"] is False
    parse_config(settings, "chat")


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def is_downloaded(model: Object) -> bool:
    return model["source"] in ("hub", "s3")


def test_every_checkpoint_is_where_the_settings_say(case: Case, rendered: Objects):
    for pod in rendered.pods_of("triton"):
        mounts = [mount["mountPath"] for mount in pod.container("triton")["volumeMounts"]]
        for model, settings in engines(rendered, pod).items():
            source = wanted(case, pod.track)[model][1]["source"]
            in_a_mount = any(settings["model"] == path or settings["model"].startswith(f"{path}/") for path in mounts)
            assert in_a_mount == (source != "embedded"), f"{pod.name}: {model} in {settings['model']}"


def test_downloads_go_where_the_settings_look(case: Case, rendered: Objects):
    for pod in rendered.pods_of("triton"):
        fetchers = {one["name"]: one for one in fetch_containers(pod)}
        expected = {
            f"fetch-{model.replace('.', '-').replace('_', '-').lower()}": model
            for model, (_, source) in wanted(case, pod.track).items()
            if is_downloaded(source)
        }
        checkpoints = {name for name in fetchers if "adapter-" not in name}
        assert checkpoints - {"fetch-embeddings"} == expected.keys()
        for container, model in expected.items():
            fetcher = fetchers[container]
            target = flags(fetcher)["--target"]
            assert target == engines(rendered, pod)[model]["model"]
            writable = [one["mountPath"] for one in fetcher["volumeMounts"] if not one.get("readOnly")]
            assert any(target.startswith(f"{path}/") for path in writable), f"{pod.name}: {model}"


def test_another_revision_gets_another_folder(helm4: Helm4):
    """An upgrade must not change files that a running pod has open."""

    def folder(revision: str) -> str:
        objects = helm4.render({"model": {"hub": {"revision": revision}}})
        return str(engines(objects, objects.pod("triton"))["chat"]["model"])

    assert folder("a" * 40) != folder("b" * 40)


def test_nothing_is_downloaded_for_checkpoints_that_are_there(helm4: Helm4):
    for model in (
        {"source": "pvc", "pvc": {"claimName": "checkpoints"}},
        {"source": "hostPath", "hostPath": {"path": "/data"}},
        {"source": "image", "image": {"reference": "registry.example.com/model:1"}},
        {"source": "embedded"},
    ):
        objects = helm4.render({"model": model, "storage": {"type": "pvc"}})
        assert fetch_containers(objects.pod("triton")) == []
        assert objects.of("PersistentVolumeClaim") == []


def test_a_checkpoint_that_is_there_is_mounted_for_reading(helm4: Helm4):
    objects = helm4.render({"model": {"source": "pvc", "pvc": {"claimName": "checkpoints", "subPath": "llm"}}})
    pod = objects.pod("triton")
    path = engines(objects, pod)["chat"]["model"]
    (mount,) = [one for one in pod.container("triton")["volumeMounts"] if path.startswith(one["mountPath"])]
    assert mount["readOnly"] is True
    assert mount["subPath"] == "llm"
    assert pod.volume(mount["name"])["persistentVolumeClaim"]["claimName"] == "checkpoints"


@pytest.mark.parametrize("claim", ["", "shared-models"])
def test_a_claim_for_downloads_is_made_and_kept_or_an_existing_one_used(claim: str, helm4: Helm4):
    objects = helm4.render({"storage": {"type": "pvc", "existingClaim": claim, "size": "7Gi"}})
    made = objects.of("PersistentVolumeClaim")
    (used,) = found(objects.pod("triton").spec, "claimName")
    if claim:
        assert (made, used) == ([], claim)
    else:
        assert used == made[0]["metadata"]["name"]
        assert made[0]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert made[0]["spec"]["resources"]["requests"]["storage"] == "7Gi"


SOURCES: dict[str, Any] = {
    "hub": {"source": "hub", "hub": {"id": "a/{track}"}},
    "s3": {"source": "s3", "s3": {"uri": "s3://bucket/{track}"}},
    "pvc": {"source": "pvc", "pvc": {"claimName": "{track}-claim"}},
    "hostPath": {"source": "hostPath", "hostPath": {"path": "/{track}"}},
    "image": {"source": "image", "image": {"reference": "registry.example.com/{track}:1"}},
    "embedded": {"source": "embedded"},
}


def source(kind: str, track: str) -> Any:
    return json.loads(json.dumps(SOURCES[kind]).replace("{track}", track))


@pytest.mark.parametrize("stable", SOURCES)
@pytest.mark.parametrize("other", SOURCES)
def test_a_canary_has_any_kind_of_source_beside_any_other(stable: str, other: str, helm4: Helm4):
    """And nothing of the stable track's."""
    canary = {"enabled": True, "weight": 0, "model": source(other, "canary")}
    objects = helm4.render({"model": source(stable, "stable"), "canary": canary})
    for kind, track, foreign in ((stable, "stable", "canary"), (other, "canary", "stable")):
        pod = objects.pod("triton", track)
        alone = helm4.render({"model": source(kind, track)})
        assert engines(objects, pod)["chat"] == engines(alone, alone.pod("triton"))["chat"]
        assert fetch_args(pod) == fetch_args(alone.pod("triton"))
        checkpoints = [one for one in pod.spec["volumes"] if one["name"].startswith("checkpoint")]
        assert checkpoints == [
            one for one in alone.pod("triton").spec["volumes"] if one["name"].startswith("checkpoint")
        ]
        assert not any(foreign in text for text in strings([checkpoints, fetch_args(pod)]))


def test_a_canary_of_another_kind_keeps_the_settings_around_the_checkpoint(helm4: Helm4):
    """The mirror and its token; a checkpoint that nobody named is refused."""
    stable = {"source": "embedded", "hub": {"endpoint": "https://hub.example.com", "tokenSecret": {"name": "token"}}}
    canary = {"enabled": True, "weight": 0, "model": {"source": "hub", "hub": {"id": "a/b"}}}
    (fetcher,) = fetch_containers(helm4.render({"model": stable, "canary": canary}).pod("triton", "canary"))
    assert flags(fetcher)["--endpoint"] == "https://hub.example.com"
    assert flags(fetcher)["--id"] == "a/b"
    assert env(fetcher)["HF_TOKEN"]["secretKeyRef"]["name"] == "token"


def fetch_args(pod: Pod) -> list[list[str]]:
    return [one["args"] for one in fetch_containers(pod)]


def fetch_containers(pod: Pod) -> list[Object]:
    return [one for one in pod.spec.get("initContainers", []) if one["name"].startswith("fetch-")]


# --- The programs know their flags and variables ----------------------------------------------------------------------


def test_the_commands_take_their_arguments(rendered: Objects):
    """A wrong one ends in SystemExit."""
    for pod in rendered.pods_of("triton"):
        container = pod.container("triton")
        assert container["args"][0] == "serve"
        serve_parser().parse_known_args(container["args"][1:])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if command := container[probe].get("exec", {}).get("command"):
                probe_parser().parse_args(command[2:])
        for fetcher in fetch_containers(pod):
            assert fetcher["args"][0] == "fetch"
            fetch_parser().parse_args(fetcher["args"][1:])


def test_triton_keeps_its_dangerous_apis_closed(rendered: Objects):
    """By the program that starts it, whatever flags the chart gives it."""
    for pod in rendered.pods_of("triton"):
        _, given = serve_parser().parse_known_args(pod.container("triton")["args"][1:])
        assert server_flags.values("model-control-mode", given) in ([], ["none"])
        assert not {"http-restricted-api", "grpc-restricted-protocol"} & server_flags.names(given)


def test_triton_listens_on_the_family_of_its_pod(rendered: Objects):
    for pod in rendered.pods_of("triton"):
        variables = {one["name"]: one for one in pod.container("triton")["env"]}
        assert variables[POD_IP_VARIABLE]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_the_gateway_takes_its_settings(rendered: Objects, monkeypatch: pytest.MonkeyPatch):
    for pod in rendered.pods_of("gateway"):
        variables = env(pod.container("gateway"))
        given = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
        assert unknown_variables(given) == []
        with monkeypatch.context() as patch:
            for name, value in given.items():
                assert isinstance(value, str), f"{pod.name}: {name}"
                patch.setenv(name, value)
            settings = GatewaySettings()
        ports = [port["containerPort"] for port in pod.container("gateway")["ports"]]
        assert (settings.host, [settings.port]) == ("::", ports)


def test_the_chart_takes_each_setting_of_the_gateway_or_decides_it(helm4: Helm4):
    """Its list of them is that of the program."""
    settings = {name.upper() for name in GatewaySettings.model_fields}
    values = {"gateway": {"settings": dict.fromkeys([*settings, "BOGUS"], "1")}}
    message = refusal(lambda: helm4.render(values))
    decided = set(re.findall(r"gateway\.settings\.(\w+) is set by the chart", message))
    ((unknown, listed),) = re.findall(
        r"gateway\.settings\.(\w+) is not a setting of the gateway; its settings are ([\w, ]+)", message
    )
    assert unknown == "BOGUS"
    assert decided | set(listed.split(", ")) == settings
    template = (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8")
    section = template[template.index('"triton-chat.validate.gatewaySettings"') :]
    assert set(re.findall(r'"([A-Z_]+)"', section)) == settings


@pytest.mark.parametrize(
    ("value", "text"),
    [(900, "900"), (4194304, "4194304"), (1.5, "1.5"), ({"gpt": "chat"}, '{"gpt":"chat"}'), ("a,b", "a,b")],
)
def test_gateway_settings_go_through_as_text(value: object, text: str, helm4: Helm4):
    name = "ALIASES" if isinstance(value, dict) else "CORS_ORIGINS" if isinstance(value, str) else "MAX_BODY_BYTES"
    objects = helm4.render({"gateway": {"settings": {name: value}}})
    assert env(objects.pod("gateway").container("gateway"))[PREFIX + name] == text


def test_api_keys_come_from_a_file_of_the_secret(helm4: Helm4):
    objects = helm4.render({"gateway": {"apiKeys": {"existingSecret": "keys"}}, "ui": {"enabled": True}})
    pod = objects.pod("gateway")
    path = env(pod.container("gateway"))[f"{PREFIX}API_KEYS_FILE"]
    (mount,) = [one for one in pod.container("gateway")["volumeMounts"] if path.startswith(one["mountPath"])]
    secret = pod.volume(mount["name"])["secret"]
    assert secret["secretName"] == "keys"
    assert {"key": "api-keys", "path": path.rsplit("/", 1)[1]} in secret["items"]
    assert env(objects.pod("ui", "").container("ui"))["TRITON_CHAT_UI_API_KEY"] == {
        "secretKeyRef": {"name": "keys", "key": "ui-key"}
    }


def test_without_embeddings_the_server_leaves_them_out(helm4: Helm4):
    container = helm4.render({"embeddings": {"enabled": False}}).pod("triton").container("triton")
    options, _ = serve_parser().parse_known_args(container["args"][1:])
    assert options.left_out == ["embeddings"]
