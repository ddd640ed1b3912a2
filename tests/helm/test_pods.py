"""What every pod is allowed, how it is watched, and how it stops."""

from __future__ import annotations

import pytest

from tests.helm.cases import Case, defaults, effective
from tests.helm.engines import Helm4
from tests.helm.objects import Object, Objects, Pod, env, flags, found

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
PRE_STOP_SECONDS = 5
EXIT_MARGIN_SECONDS = 5
GRACE_MARGIN_SECONDS = 15
OUT_OF_THE_SERVICE_SECONDS = 10


def secured(pod: Pod, container: Object) -> Object:
    """The settings of a container's security, the pod's included."""
    shared = pod.spec.get("securityContext", {})
    return {**{key: shared[key] for key in shared}, **container.get("securityContext", {})}


def seconds_of_pre_stop(container: Object) -> int:
    hook = container["lifecycle"]["preStop"]
    return int(hook["sleep"]["seconds"] if "sleep" in hook else hook["exec"]["command"][-1])


def servers(objects: Objects) -> list[tuple[Pod, Object]]:
    """The containers that serve, with their pods: those named as the component."""
    return [(pod, pod.container(pod.component)) for pod in objects.pods if pod.component and not pod.is_test]


def uses_vllm(pod: Pod) -> bool:
    return "triton-chat-vllm" in pod.container(pod.component)["image"]


# --- Pod Security, profile `restricted` -------------------------------------------------------------------------------


def test_containers_have_no_more_rights_than_they_need(rendered: Objects):
    for pod in rendered.pods:
        for container in pod.containers:
            context = secured(pod, container)
            where = f"{pod.name}, container {container['name']}"
            assert context.get("runAsNonRoot") is True, where
            assert context.get("runAsUser") != 0, where
            assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, where
            assert context.get("allowPrivilegeEscalation") is False, where
            assert context.get("privileged", False) is False, where
            assert context.get("readOnlyRootFilesystem") is True, where
            assert context.get("capabilities") == {"drop": ["ALL"]}, where


def test_pods_see_nothing_of_the_host_and_have_no_token(case: Case, rendered: Objects):
    allowed = RESTRICTED_VOLUMES | ({"hostPath"} if "hostPath" in list(found(case.values, "source")) else set())
    for pod in rendered.pods:
        assert pod.spec.get("automountServiceAccountToken") is False, pod.name
        for setting in ("hostNetwork", "hostPID", "hostIPC"):
            assert pod.spec.get(setting, False) is False, pod.name
        for volume in pod.spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, f"{pod.name}: {volume}"
        ports = [port for container in pod.containers for port in container.get("ports", [])]
        assert all("hostPort" not in port for port in ports), pod.name


def test_the_service_account_mounts_no_token(rendered: Objects):
    assert all(account["automountServiceAccountToken"] is False for account in rendered.of("ServiceAccount"))


def test_service_links_do_not_add_variables(rendered: Objects):
    """A Service in the same namespace would otherwise set variables that look like settings."""
    assert all(pod.spec.get("enableServiceLinks") is False for pod in rendered.pods)


def test_a_read_only_root_comes_with_a_writable_tmp(rendered: Objects):
    for pod, container in servers(rendered):
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert "emptyDir" in pod.volume(mounts["/tmp"]), pod.name


# --- Probes -----------------------------------------------------------------------------------------------------------


def test_servers_are_probed_with_explicit_times(rendered: Objects):
    for pod, container in servers(rendered):
        if pod.component == "triton-worker":
            continue  # it ends itself, and nobody calls it
        probes = ["startupProbe", "readinessProbe", "livenessProbe"]
        for kind in probes if pod.component == "triton" else probes[1:]:
            times = container[kind].keys() & {"timeoutSeconds", "periodSeconds", "failureThreshold"}
            assert len(times) == 3, f"{pod.name}: {kind}"
            assert container[kind]["timeoutSeconds"] <= container[kind]["periodSeconds"], f"{pod.name}: {kind}"


def test_the_startup_probe_covers_the_loading(case: Case, rendered: Objects):
    asked = effective(case)["triton"]
    for pod in rendered.pods_of("triton"):
        needed = asked["loadSeconds"] or ((3600 if asked["nodes"] > 1 else 1800) if uses_vllm(pod) else 900)
        probe = pod.container("triton")["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= needed, pod.name
        assert probe["periodSeconds"] <= 15, "a quick load is noticed quickly"


def test_liveness_notices_a_dead_or_stuck_backend(case: Case, rendered: Objects):
    stall = effective(case)["triton"]["stallSeconds"]
    for pod in rendered.pods_of("triton"):
        probe = pod.container("triton")["livenessProbe"]
        command = probe["exec"]["command"]
        assert command[:3] == ["triton-chat-server", "probe", "live"], pod.name
        assert flags({"command": command})["--stall-seconds"] == str(stall), pod.name


def test_a_dead_backend_has_no_long_grace(case: Case, rendered: Objects):
    """preStop takes its time then too, and what is left must let tritonserver end."""
    for pod in rendered.pods_of("triton"):
        container = pod.container("triton")
        grace = container["livenessProbe"]["terminationGracePeriodSeconds"]
        assert seconds_of_pre_stop(container) + 2 < grace <= 15, pod.name
        assert grace < pod.spec["terminationGracePeriodSeconds"], pod.name
        assert "terminationGracePeriodSeconds" not in container["readinessProbe"], "Kubernetes refuses it"


def test_readiness_asks_for_the_models_and_their_heartbeats(rendered: Objects):
    for pod in rendered.pods_of("triton"):
        assert pod.container("triton")["readinessProbe"]["exec"]["command"][:3] == [
            "triton-chat-server",
            "probe",
            "ready",
        ], pod.name


def test_a_silent_backend_is_soon_out_of_the_service(rendered: Objects):
    """At worst its last heartbeat comes just before it stops, and the silence ends just after a probe."""
    for pod in rendered.pods_of("triton"):
        probe = pod.container("triton")["readinessProbe"]
        silence = int(flags(probe["exec"])["--silent-seconds"])
        wait = silence + probe["failureThreshold"] * probe["periodSeconds"]
        assert wait < OUT_OF_THE_SERVICE_SECONDS, pod.name
        assert (probe["failureThreshold"] + 1) * probe["timeoutSeconds"] < OUT_OF_THE_SERVICE_SECONDS, "one that hangs"


def test_the_gateway_is_probed_at_its_health_routes(rendered: Objects):
    for pod in rendered.pods_of("gateway"):
        assert pod.container("gateway")["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        assert pod.container("gateway")["livenessProbe"]["httpGet"]["path"] == "/health/live"


# --- Stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_has_time_for_each_of_its_steps(case: Case, rendered: Objects):
    values = effective(case)
    drain = values["drainSeconds"]
    for pod in rendered.pods_of("triton"):
        container = pod.container("triton")
        pre_stop = seconds_of_pre_stop(container)
        exit_timeout = int(flags(container)["--exit-timeout-secs"])
        grace = pod.spec["terminationGracePeriodSeconds"]
        assert pre_stop == PRE_STOP_SECONDS
        assert exit_timeout == drain + EXIT_MARGIN_SECONDS
        assert grace == (values["terminationGracePeriodSeconds"] or pre_stop + drain + GRACE_MARGIN_SECONDS)
        assert pre_stop < exit_timeout < grace
        assert pre_stop + exit_timeout < grace


def test_the_gateway_drains_before_it_is_killed(case: Case, rendered: Objects):
    for pod in rendered.pods_of("gateway"):
        container = pod.container("gateway")
        drain = int(env(container)["TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT"])
        assert drain == effective(case)["drainSeconds"]
        assert seconds_of_pre_stop(container) + drain < pod.spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("drain", [1, 7, 600])
def test_drain_seconds_decide_all_times(drain: int, helm4: Helm4):
    objects = helm4.render({"drainSeconds": drain})
    test_a_stop_has_time_for_each_of_its_steps(Case("drain", {"drainSeconds": drain}), objects)
    test_the_gateway_drains_before_it_is_killed(Case("drain", {"drainSeconds": drain}), objects)


def test_a_longer_grace_period_is_taken(helm4: Helm4):
    objects = helm4.render({"terminationGracePeriodSeconds": 500})
    assert objects.pod("triton").spec["terminationGracePeriodSeconds"] == 500


# --- The pods of `helm test` ------------------------------------------------------------------------------------------


def test_there_are_tests_that_run_once_and_leave_their_logs(rendered: Objects):
    tests = [pod for pod in rendered.pods if pod.is_test]
    assert {pod.name.rsplit("-", 1)[1] for pod in tests} == {"health", "models", "chat"}
    for pod in tests:
        assert pod.spec["restartPolicy"] == "Never"
        # An uninstall knows nothing of them, so they go by themselves; one that failed stays for its log.
        assert pod.annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert pod.annotations["helm.sh/hook-output-log-policy"] == "hook-failed"
        (container,) = pod.containers
        assert container["command"] == ["python3", "-c"]
        compile(container["args"][0], pod.name, "exec")


# --- Resources --------------------------------------------------------------------------------------------------------


def test_every_container_has_requests_and_a_memory_limit(rendered: Objects):
    for pod in rendered.pods:
        for container in pod.containers:
            resources = container.get("resources", {})
            assert {"cpu", "memory"} <= resources.get("requests", {}).keys(), f"{pod.name}: {container['name']}"
            assert "memory" in resources.get("limits", {}), f"{pod.name}: {container['name']}"


def test_the_gpu_is_asked_for_by_its_resource_name(case: Case, rendered: Objects):
    gpu = effective(case)["triton"]["gpu"]
    for pod in [*rendered.pods_of("triton"), *rendered.pods_of("triton-worker")]:
        limits = pod.container(pod.component)["resources"]["limits"]
        assert limits.get(gpu["resource"]) == (gpu["count"] or None), pod.name
        others = [one for one in pod.containers if one["name"] != pod.component]
        assert all(gpu["resource"] not in one["resources"].get("limits", {}) for one in others), pod.name


def test_a_mig_slice_replaces_the_gpu(helm4: Helm4):
    objects = helm4.render({"triton": {"gpu": {"count": 1, "resource": "nvidia.com/mig-3g.40gb"}}})
    limits = objects.pod("triton").container("triton")["resources"]["limits"]
    assert {key: value for key, value in limits.items() if "nvidia" in key} == {"nvidia.com/mig-3g.40gb": 1}


def test_without_a_gpu_the_server_is_told_so(helm4: Helm4):
    container = helm4.render({"triton": {"gpu": {"count": 0}}}).pod("triton").container("triton")
    assert flags(container)["--device"] == "cpu"
    assert not any("nvidia" in name for name in container["resources"]["limits"])


def test_with_a_gpu_the_server_starts_on_nothing_else(helm4: Helm4):
    assert flags(helm4.render({}).pod("triton").container("triton"))["--device"] == "gpu"


def test_shared_memory_is_of_the_size_asked_for(case: Case, rendered: Objects):
    values = effective(case)
    gpus = max(1, values["triton"]["gpu"]["count"])
    for pod in [*rendered.pods_of("triton"), *rendered.pods_of("triton-worker")]:
        derived = f"{1 + gpus}Gi" if uses_vllm(pod) else "1Gi"
        size = values["triton"]["shmSize"] or derived
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container(pod.component)["volumeMounts"]}
        assert pod.volume(mounts["/dev/shm"])["emptyDir"] == {"medium": "Memory", "sizeLimit": size}, pod.name


# --- What is in whose hands -------------------------------------------------------------------------------------------


def test_the_server_never_goes_to_the_hub(rendered: Objects):
    assert all(env(pod.container("triton"))["HF_HUB_OFFLINE"] == "1" for pod in rendered.pods_of("triton"))


def test_tokens_are_for_the_download_alone(case: Case, rendered: Objects):
    secrets = {
        *(secret["name"] for secret in found(case.values, "tokenSecret")),
        *found(case.values, "credentialsSecret"),
    } - {""}
    for pod in rendered.pods:
        fetchers = [one for one in pod.spec.get("initContainers", []) if one["name"].startswith("fetch-")]
        for container in pod.containers:
            named = {source["name"] for key in ("secretKeyRef", "secretRef") for source in found(container, key)}
            assert container in fetchers or not named & secrets, f"{pod.name}: {container['name']}"
        assert not secrets & set(found(pod.spec.get("volumes", []), "secretName")), pod.name


@pytest.mark.parametrize("component", ["triton", "gateway", "ui"])
def test_the_scheduling_of_pods_goes_through(component: str, helm4: Helm4):
    asked = {
        "priorityClassName": "high",
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    }
    given = {"podAnnotations": {"a/b": "c"}, "podLabels": {"team": "chat"}, "extraEnv": [{"name": "X", "value": "y"}]}
    switch = {} if component == "triton" else {"enabled": True}
    (pod,) = helm4.render({component: switch | asked | given}).pods_of(component)
    assert {key: pod.spec[key] for key in asked} == asked
    assert pod.annotations["a/b"] == "c"
    assert pod.labels["team"] == "chat"
    assert env(pod.container(component))["X"] == "y"


def test_defaults_name_no_image_by_latest(helm4: Helm4):
    images = {container["image"] for pod in helm4.render(defaults()).pods for container in pod.containers}
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_a_digest_wins_over_a_tag(helm4: Helm4):
    digest = f"sha256:{'a' * 64}"
    image = {"image": {"registry": "registry.example.com/team", "triton": {"tag": "1", "digest": digest}}}
    assert helm4.render(image).pod("triton").container("triton")["image"] == (
        f"registry.example.com/team/triton-chat@{digest}"
    )
