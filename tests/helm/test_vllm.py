"""vLLM in the chart: its image, GPUs, adapters, and models over several machines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helm.cases import ADD_ONS, Case, ci_case, effective
from tests.helm.engines import NAMESPACE, Helm4, refusal
from tests.helm.leader_worker_set import leader_worker_problems
from tests.helm.objects import Object, Objects, Pod, env, flags, name, selects
from tests.helm.test_models import engines, fetch_containers
from tests.helm.traffic import Peer, Traffic
from tests.helm.versions import NEWEST
from triton_chat_server.join.command import LEADER_VARIABLE, RANK_VARIABLE
from triton_chat_server.join.command import _parser as join_parser

VLLM: dict[str, Any] = {"engine": {"engine": "vllm"}}
SECOND: dict[str, Any] = {"name": "small", "model": {"source": "embedded"}}
ADAPTER = {"source": "hub", "hub": {"id": "a/b"}}
WITH_LORA = {"engine": {"engine": "vllm", "vllm": {"enable_lora": True}}}
NODES_PORT = 29501


def split(tensor: int = 1, pipeline: int = 1, **more: Any) -> dict[str, Any]:
    block = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline} | more
    return {"engine": {"engine": "vllm", "vllm": block}}


def gpus(count: int, nodes: int = 1, **more: Any) -> dict[str, Any]:
    return {"triton": {"gpu": {"count": count} | more, "nodes": nodes}}


def image(pod: Pod) -> str:
    return str(pod.container(pod.component)["image"]).split(":")[0]


# --- The image and the surroundings -----------------------------------------------------------------------------------


def test_the_image_is_that_of_an_engine_of_the_pod(helm4: Helm4):
    assert image(helm4.render({}).pod("triton")) == "triton-chat"
    assert image(helm4.render({"engine": {"engine": "native"}}).pod("triton")) == "triton-chat"
    assert image(helm4.render(VLLM).pod("triton")) == "triton-chat-vllm"
    assert image(helm4.render({"extraModels": [SECOND | VLLM]}).pod("triton")) == "triton-chat-vllm"


def test_a_canary_may_have_the_other_engine(helm4: Helm4):
    objects = helm4.render({"canary": {"enabled": True, "weight": 0, "image": {"tag": "7"}} | VLLM})
    assert image(objects.pod("triton")) == "triton-chat"
    assert objects.pod("triton", "canary").container("triton")["image"] == "triton-chat-vllm:7"


def test_a_canary_with_another_engine_has_nothing_of_vllm(helm4: Helm4):
    stable = WITH_LORA | {"adapters": {"x": ADAPTER}}
    objects = helm4.render(stable | {"canary": {"enabled": True, "weight": 0, "engine": {"engine": "native"}}})
    assert engines(objects, objects.pod("triton", "canary"))["chat"].keys() == {"engine", "model", "drain_seconds"}
    assert image(objects.pod("triton", "canary")) == "triton-chat"


def test_a_download_runs_in_the_same_image(helm4: Helm4):
    pod = helm4.render(VLLM).pod("triton")
    assert {one["image"] for one in pod.containers} == {pod.container("triton")["image"]}


def test_what_vllm_writes_goes_to_a_volume(helm4: Helm4):
    pod = helm4.render(VLLM).pod("triton")
    container = pod.container("triton")
    variables = env(container)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert "emptyDir" in pod.volume(mounts["/cache"]["name"])
    assert not mounts["/cache"].get("readOnly")
    for variable in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert variables[variable].startswith("/cache/"), variable
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["VLLM_HOST_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert not any(variable.startswith("VLLM") for variable in env(helm4.render({}).pod("triton").container("triton")))


def test_variables_of_the_user_come_last(helm4: Helm4):
    mine = {"name": "VLLM_CACHE_ROOT", "value": "/mine"}
    assert (
        env(helm4.render(VLLM | {"triton": {"extraEnv": [mine]}}).pod("triton").container("triton"))["VLLM_CACHE_ROOT"]
        == "/mine"
    )


# --- Adapters ---------------------------------------------------------------------------------------------------------


def test_the_engine_finds_each_adapter_where_it_was_put(helm4: Helm4):
    case = ci_case("vllm-adapters")
    objects = helm4.render(case.values, apis=ADD_ONS)
    pod = objects.pod("triton")
    settings = engines(objects, pod)
    places = {**{flags(one)["--target"]: one for one in fetch_containers(pod)}}
    mounts = {one["mountPath"] for one in pod.container("triton")["volumeMounts"]}
    assert settings["chat"]["adapters"].keys() == case.values["adapters"].keys()
    assert settings["small"]["adapters"].keys() == {"sql"}
    folders = [folder for model in settings.values() for folder in model["adapters"].values()]
    assert len(set(folders)) == 4
    for folder in folders:
        assert folder in mounts or "--adapter" in places[folder]["args"], folder
    assert sum("--adapter" in one["args"] for one in places.values()) == 3


def test_a_canary_has_the_adapters_of_the_stable_track_or_its_own(helm4: Helm4):
    def of_canary(adapters: dict[str, Any]) -> set[str]:
        canary = {"enabled": True, "weight": 0, "adapters": adapters}
        objects = helm4.render(WITH_LORA | {"adapters": {"one": ADAPTER}, "canary": canary})
        return set(engines(objects, objects.pod("triton", "canary"))["chat"]["adapters"])

    assert of_canary({}) == {"one"}
    assert of_canary({"two": ADAPTER}) == {"two"}


def test_names_of_adapters_are_safe_in_names_of_objects(helm4: Helm4):
    names = ["a" * 128, "Team/x:1.0_b", "b" * 60 + "1", "b" * 60 + "2"]
    pod = helm4.render(WITH_LORA | {"adapters": dict.fromkeys(names, ADAPTER)}).pod("triton")
    containers = [one["name"] for one in fetch_containers(pod)]
    assert len(set(containers)) == 5
    assert all(len(one) <= 63 and one == one.lower() and not set(one) & set("/:._") for one in containers)


# --- Several machines -------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(helm4: Helm4) -> Objects:
    return helm4.render(ci_case("vllm-nodes").values, apis=ADD_ONS)


def group(objects: Objects) -> Object:
    (one,) = objects.of("LeaderWorkerSet")
    return one


def test_a_group_is_a_leader_and_its_workers(nodes: Objects):
    spec = group(nodes)["spec"]
    template = spec["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert spec["startupPolicy"] == "LeaderCreated"
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert not [one for one in nodes.of("Deployment") if "triton-chat-triton" in name(one)]


def test_its_name_is_free_for_the_service_of_its_controller(nodes: Objects):
    assert name(group(nodes)) not in nodes.names("Service")


def test_leader_and_workers_have_the_same_of_all_that_computes(nodes: Objects):
    leader, worker = nodes.pod("triton"), nodes.pod("triton-worker")
    ours, theirs = leader.container("triton"), worker.container("triton-worker")
    assert theirs["image"] == ours["image"]
    assert theirs["resources"] == ours["resources"]
    assert [one["args"] for one in fetch_containers(worker)] == [one["args"] for one in fetch_containers(leader)]
    assert env(theirs).items() <= env(ours).items()
    assert engines(nodes, leader)["chat"]["vllm"]["nnodes"] == 2


def test_workers_join_by_the_variables_of_their_group(nodes: Objects):
    arguments = nodes.pod("triton-worker").container("triton-worker")["args"]
    assert arguments[0] == "join"
    options = join_parser().parse_args(arguments[1:])
    assert options.leader is options.rank is None
    assert (LEADER_VARIABLE, RANK_VARIABLE) == ("LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX")


def test_a_worker_outlives_the_drain_of_its_leader(nodes: Objects):
    leader, worker = nodes.pod("triton").spec, nodes.pod("triton-worker").spec
    assert worker["terminationGracePeriodSeconds"] > leader["terminationGracePeriodSeconds"]


def test_only_leaders_are_called_and_scraped(nodes: Objects):
    labels = nodes.pod("triton-worker").labels
    for one in nodes.of("Service"):
        assert not selects(one["spec"]["selector"], labels), name(one)
    for one in nodes.of("PodMonitor"):
        assert not selects(one["spec"]["selector"], labels), name(one)


def test_the_pods_of_a_group_reach_each_other_and_nobody_else_does(nodes: Objects):
    rules = Traffic(nodes.of("NetworkPolicy"), NAMESPACE)
    leader, worker, gateway = nodes.pod("triton"), nodes.pod("triton-worker"), nodes.pod("gateway")
    for here, there in ((leader, worker), (worker, leader), (worker, worker)):
        assert rules.may_open(here, rules.peer(there), NODES_PORT)
        assert rules.reaches(there, rules.peer(here), 40123), "vLLM chooses ports as it goes"
    stranger = Peer({"app": "anything"}, NAMESPACE)
    for port in (NODES_PORT, 40123):
        assert not rules.reaches(leader, rules.peer(gateway), port)
        assert not rules.reaches(worker, rules.peer(gateway), port)
        assert not rules.reaches(worker, stranger, port)
        assert not rules.may_open(worker, stranger, port)
    assert rules.may_open(worker, Peer(address="93.184.215.14"), 443), "its download"


def test_on_one_machine_no_port_is_open_between_pods(helm4: Helm4):
    objects = helm4.render(split(4) | gpus(4))
    rules = Traffic(objects.of("NetworkPolicy"), NAMESPACE)
    triton = objects.pod("triton")
    assert not rules.reaches(triton, rules.peer(triton), NODES_PORT)


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_groups_are_scaled(kind: str, helm4: Helm4):
    scaling = {"type": kind, "prometheusAddress": "http://p:9090"}
    values = split(2) | {"triton": {"nodes": 2, "autoscaling": scaling}, "storage": {"type": "emptyDir"}}
    objects = helm4.render(values, apis=ADD_ONS)
    (scaler,) = objects.of("HorizontalPodAutoscaler", "ScaledObject")
    made = group(objects)
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": made["apiVersion"],
        "kind": "LeaderWorkerSet",
        "name": name(made),
    }
    assert "replicas" not in made["spec"]


def test_the_canary_has_groups_of_its_own(helm4: Helm4):
    values = split(2) | gpus(1, nodes=2) | {"canary": {"enabled": True, "weight": 0, "replicas": 3}}
    replicas = {name(one): one["spec"]["replicas"] for one in helm4.render(values).of("LeaderWorkerSet")}
    assert replicas == {"demo-triton-chat-triton-nodes": 1, "demo-triton-chat-triton-nodes-canary": 3}


def test_a_bad_group_is_found(nodes: Objects):
    good = group(nodes)
    assert leader_worker_problems(good, NEWEST) == []

    def changed(path: str, value: Any) -> Object:
        bad: Object = json.loads(json.dumps(good))
        *parents, last = path.split(".")
        place = bad
        for key in parents:
            place = place[key]
        place[last] = value
        return bad

    for path, value in (
        ("spec.size", 2),
        ("spec.startupPolicy", "Later"),
        ("spec.leaderWorkerTemplate.restartPolicy", "Always"),
        ("spec.leaderWorkerTemplate.workerTemplate.spec.containrs", []),
        ("metadata.name", "x" * 50),
    ):
        assert leader_worker_problems(changed(path, value), NEWEST), path


# --- What cannot work -------------------------------------------------------------------------------------------------

SIZES = "tensor_parallel_size x pipeline_parallel_size x prefill_context_parallel_size x data_parallel_size"
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        gpus(4),
        (
            'triton.gpu.count is 4, but engine.engine is "native", which computes on one GPU: set engine.engine=vllm '
            "and engine.vllm.tensor_parallel_size=4, or triton.gpu.count=1 and triton.nodes=1"
        ),
    ),
    (
        gpus(1, nodes=2),
        (
            'triton.nodes x triton.gpu.count is 2 x 1, but engine.engine is "native", which computes on one GPU: set '
            "engine.engine=vllm and engine.vllm.tensor_parallel_size=2, or triton.gpu.count=1 and triton.nodes=1"
        ),
    ),
    (
        split(4),
        (
            f"triton.gpu.count is 1, but engine.vllm splits the model over 4 ({SIZES}): set triton.gpu.count=4, or "
            "sizes that multiply to 1"
        ),
    ),
    (
        split(2, 2) | gpus(8),
        (
            f"triton.gpu.count is 8, but engine.vllm splits the model over 4 ({SIZES}): set triton.gpu.count=4, or "
            "sizes that multiply to 8"
        ),
    ),
    (
        split(8) | gpus(8, nodes=2),
        (
            f"triton.nodes x triton.gpu.count is 2 x 8, but engine.vllm splits the model over 8 ({SIZES}): set sizes "
            "that multiply to 16"
        ),
    ),
    (
        split(4) | gpus(4) | {"canary": {"enabled": True, "weight": 0, **split(2)}},
        (
            f"triton.gpu.count is 4, but canary.engine.vllm splits the model over 2 ({SIZES}): set triton.gpu.count=2, "
            "or sizes that multiply to 4"
        ),
    ),
    (
        split(2, data_parallel_size=2) | gpus(2, nodes=2),
        (
            "engine.vllm.data_parallel_size is 2, but triton.nodes is 2: over several machines, a model is split by "
            "tensor and pipeline parallelism alone; for more throughput set triton.replicas"
        ),
    ),
    (
        split(2) | gpus(2) | {"extraModels": [SECOND | VLLM]},
        (
            "triton.gpu.count is 2, but extraModels is set: a pod with several GPUs serves one chat model; install the "
            "others as releases of their own"
        ),
    ),
    (
        split(2) | gpus(2, resource="nvidia.com/mig-3g.40gb"),
        (
            'triton.gpu.count is 2, but triton.gpu.resource is "nvidia.com/mig-3g.40gb": slices of GPUs cannot '
            "exchange data; set triton.gpu.count=1, or whole GPUs as nvidia.com/gpu"
        ),
    ),
    (
        VLLM | {"extraModels": [SECOND | {"engine": {"engine": "vllm", "memory_fraction": 0.5}}]},
        (
            "engine.memory_fraction=0.9 and extraModels[0].engine.memory_fraction=0.5: each vLLM takes its own part of "
            "the GPU that they share; lower them until their sum is below 1"
        ),
    ),
    ({"engine": {"vllm": {"a": 1}}}, 'engine.vllm is set, but engine.engine is "native": set engine.engine=vllm'),
    (
        {"extraModels": [SECOND | {"engine": {"vllm": {"a": 1}}}]},
        (
            'extraModels[0].engine.vllm is set, but extraModels[0].engine.engine is "native": set '
            "extraModels[0].engine.engine=vllm"
        ),
    ),
    *[
        (split(**{key: 1}), f"engine.vllm.{key} is set by the chart: set triton.nodes instead")
        for key in ("nnodes", "node_rank", "master_addr")
    ],
    (
        {"adapters": {"x": ADAPTER}},
        'adapters is set, but engine.engine is "native", which has none: set engine.engine=vllm',
    ),
    (VLLM | {"adapters": {"x": ADAPTER}}, "adapters is set, but engine.vllm.enable_lora is not: set it to true"),
    (
        {"canary": {"enabled": True, "weight": 0, "adapters": {"x": ADAPTER}}},
        'canary.adapters is set, but canary.engine.engine is "native", which has none: set canary.engine.engine=vllm',
    ),
    ({"engine": {"adapters": {"x": "a/b"}}}, "engine.adapters is set by the chart: set adapters instead"),
    (
        WITH_LORA | {"adapters": {"x": {"source": "hub"}}},
        'adapters.x.hub.id is empty, but adapters.x.source is "hub", which needs it',
    ),
    (
        WITH_LORA | {"adapters": {"chat": ADAPTER}},
        (
            "adapters.chat has a name which is taken: names of models and adapters must differ even in lower case and "
            "with . _ : and / read as -"
        ),
    ),
    (
        WITH_LORA | {"adapters": {"x y": ADAPTER}},
        (
            'adapters has the name "x y": at most 128 letters, digits, - _ . : and /, with a letter or a digit at both '
            "ends"
        ),
    ),
    (
        WITH_LORA | {"adapters": {"a.b": ADAPTER, "A/b": ADAPTER}},
        (
            "adapters.a.b has a name which is taken: names of models and adapters must differ even in lower case and "
            "with . _ : and / read as -"
        ),
    ),
    (
        split(2) | gpus(1, nodes=2) | {"fullnameOverride": "x" * 37},
        (
            f'triton.nodes is 2, and the names of the pods of a LeaderWorkerSet get longer than "{"x" * 37}" allows: '
            "set fullnameOverride, of at most 36 characters"
        ),
    ),
    (
        split(2) | gpus(1, nodes=2) | {"storage": {"type": "pvc"}},
        (
            'storage.accessMode is "ReadWriteOnce", but several pods would share the claim (triton.replicas, '
            "triton.nodes, triton.strategy.maxSurge, triton.autoscaling or canary): set ReadWriteMany, or "
            "storage.type=emptyDir"
        ),
    ),
]


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=lambda one: one[:60] if isinstance(one, str) else "")
def test_what_cannot_work_is_refused_by_one_sentence(values: dict[str, Any], sentence: str, helm4: Helm4):
    assert f"\n- {sentence}\n" in refusal(lambda: helm4.render(values)) + "\n"


@pytest.mark.parametrize(
    "values",
    [
        VLLM,
        split(4) | gpus(4),
        split(2, 2) | gpus(4),
        split(2, data_parallel_size=4) | gpus(8),
        split(4) | gpus(0),
        split(8, 2) | gpus(8, nodes=2),
        split(2) | gpus(0, nodes=2),
        {"engine": {"engine": "vllm", "memory_fraction": 0.5}, "extraModels": [SECOND]},
        VLLM | {"canary": {"enabled": True, "weight": 0, "engine": {"engine": "native"}}},
        WITH_LORA | {"adapters": {"x": {"source": "pvc", "pvc": {"claimName": "c"}}}},
    ],
    ids=str,
)
def test_what_works_is_taken(values: dict[str, Any], helm4: Helm4):
    assert helm4.lint(values) == []


def test_a_name_of_the_longest_length_is_taken(helm4: Helm4):
    for longest, canary in ((36, False), (29, True)):
        values = split(2) | gpus(1, nodes=2) | {"fullnameOverride": "x" * longest}
        objects = helm4.render(values | {"canary": {"enabled": canary, "weight": 0}})
        for one in objects.of("LeaderWorkerSet"):
            assert leader_worker_problems(one, NEWEST) == []


def test_over_one_machine_nothing_is_a_group(case: Case, rendered: Objects):
    assert bool(rendered.of("LeaderWorkerSet")) == (effective(case)["triton"]["nodes"] > 1)
