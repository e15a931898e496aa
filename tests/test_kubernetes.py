"""The manifests of deploy/kubernetes fit Kubernetes' schemas, each other, the services' settings and compose.yaml.

They are not applied to a cluster here. What kustomize makes of them is looked at where it is installed, alone or in
kubectl (1.24 or newer); the rest needs nothing but Python.
"""

import functools
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from common.runtime import HARD_S
from common.settings import GatewaySettings, SchedulerSettings, ServiceSettings, WorkerSettings, load
from tests.monitoring.files import DOCUMENT, RULES

Document = dict[str, Any]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
COMPOSE: Document = yaml.safe_load((ROOT / "compose.yaml").read_text())
KINDS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "scheduler": SchedulerSettings,
    "worker": WorkerSettings,
}
VERSIONS = ("1.30", kubernetes_validate.latest_version())  # the first that lets preStop sleep, and the newest known
OTHERS = {"ScaledObject", "PodMonitor", "PrometheusRule"}  # kinds that are not Kubernetes' own
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count"), "gauge": ("",), "counter": ("",)}


def read(*parts: str) -> list[Document]:
    """All documents of a folder but its kustomization."""
    paths = [path for path in sorted(FOLDER.joinpath(*parts).glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


BASE, REDIS = read("base"), read("components", "redis")
MONITORING, KEDA = read("components", "monitoring"), read("components", "keda")
OURS = [*BASE, *REDIS]


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def names(documents: list[Document]) -> list[str]:
    return [f"{document['kind']}-{document['metadata']['name']}" for document in documents]


WORKLOADS = of_kind(OURS, "Deployment", "StatefulSet")
SERVICES = of_kind(BASE, "Deployment")
(SCALED,) = of_kind(KEDA, "ScaledObject")
TRIGGERS: dict[str, Document] = {trigger["name"]: trigger for trigger in SCALED["spec"]["triggers"]}
each_workload = pytest.mark.parametrize("workload", WORKLOADS, ids=names(WORKLOADS))
each_service = pytest.mark.parametrize("service", SERVICES, ids=names(SERVICES))


def pod(workload: Document) -> Document:
    found: Document = workload["spec"]["template"]["spec"]
    return found


def container(workload: Document) -> Document:
    (found,) = pod(workload)["containers"]
    return dict(found)


def environment(service: Document) -> dict[str, str]:
    """The variables of a service's container, as Kubernetes would set them."""
    lines = (FOLDER / "base" / "settings.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    given = {v["name"]: v.get("value", "redis://:secret@redis:6379/0") for v in container(service)["env"]}
    return settings | given


def ports(workload: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(workload)["ports"]}


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes what bears these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def selected(selector: Document) -> list[Document]:
    """The workloads whose pods a selector takes."""
    return [w for w in WORKLOADS if selects(selector, w["spec"]["template"]["metadata"]["labels"])]


def validate(document: Document) -> None:
    """Hold a document against the schemas of Kubernetes, unknown keys forbidden."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


@functools.cache
def kustomize() -> tuple[str, ...] | None:
    """The command that builds a folder; None if there is none that knows components."""
    if shutil.which("kustomize"):
        return ("kustomize", "build")
    if shutil.which("kubectl"):
        command = ("kubectl", "version", "--client", "--output=json")
        said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
        if "kustomizeVersion" in json.loads(said):  # since 1.24
            return ("kubectl", "kustomize")
    return None


@functools.cache
def built(overlay: str, folder: Path = FOLDER) -> list[Document]:
    """What kustomize makes of an overlay."""
    if (command := kustomize()) is None:
        pytest.skip("no kustomize, and no kubectl of 1.24 or newer")
    place = str(folder / "overlays" / overlay)
    done = subprocess.run([*command, place], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


# -- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", OURS, ids=names(OURS))
def test_manifest_fits_the_schema(document: Document) -> None:
    """Each manifest is what the oldest Kubernetes that is supported and the newest known take, without unknown keys."""
    validate(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("replica",), 2), (("replicas",), "two"), (("template", "spec", "containers", 0, "readOnly"), True)],
    ids=["unknown", "type", "nested"],
)
def test_schema_rejects(path: tuple[str | int, ...], value: object) -> None:
    """The schemas do say no: to an unknown key, deep inside too, and to a wrong type."""
    document = json.loads(json.dumps(SERVICES[0]))
    place = document["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(document)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_kustomization_names_what_there_is(path: Path) -> None:
    """Each names files and folders that exist, and every manifest that lies beside it."""
    document = yaml.safe_load(path.read_text())
    component = "components" in path.parts
    assert (document["kind"], document["apiVersion"]) == (
        ("Component", "kustomize.config.k8s.io/v1alpha1")
        if component
        else ("Kustomization", "kustomize.config.k8s.io/v1beta1")
    )
    known = {
        "apiVersion",
        "kind",
        "namespace",
        "resources",
        "components",
        "patches",
        "configMapGenerator",
        "secretGenerator",
    }
    assert document.keys() <= known
    assert document.get("namespace") == (None if component else "superserve")
    patches = [patch["path"] for patch in document.get("patches", []) if "path" in patch]
    generators = [env for generator in document.get("configMapGenerator", []) for env in generator["envs"]]
    files = [*document.get("resources", []), *document.get("components", []), *patches, *generators]
    for name in files:
        assert (path.parent / name).exists(), name
    assert {beside.name for beside in path.parent.iterdir() if beside != path} <= set(files)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_builds(overlay: str) -> None:
    """kustomize builds it, all of it is in one namespace and fits the schemas, and what pods refer to is in it."""
    documents = built(overlay)
    for document in documents:
        if document["kind"] not in OTHERS:
            validate(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "superserve"
    assert len(set(names(documents))) == len(documents)
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    secret = {name for kind, name in there if kind == "Secret"} or {"superserve-redis"}  # or made beforehand
    for workload in of_kind(documents, "Deployment", "StatefulSet"):
        assert ("ServiceAccount", pod(workload)["serviceAccountName"]) in there
        for source in container(workload).get("envFrom", []):
            assert ("ConfigMap", source["configMapRef"]["name"]) in there
        for variable in container(workload)["env"]:
            if "valueFrom" in variable:
                assert variable["valueFrom"]["secretKeyRef"]["name"] in secret
    assert (overlay == "try") == (("StatefulSet", "redis") in there) == (len(of_kind(documents, "Secret")) == 1)
    assert OTHERS & {kind for kind, _ in there} == (set() if overlay == "try" else OTHERS)


def test_gpu_overlay_gives_workers_a_gpu() -> None:
    """A worker gets one GPU and an image for it, finds it as compose does; KEDA says how many there are."""
    (worker,) = [d for d in of_kind(built("gpu"), "Deployment") if d["metadata"]["name"] == "worker"]
    variables = {variable["name"]: variable.get("value") for variable in container(worker)["env"]}
    assert variables == {
        "REDIS_URL": None,
        "SUPERSERVE_DEVICE": COMPOSE["services"]["worker-gpu"]["environment"]["SUPERSERVE_DEVICE"],
    }
    assert container(worker)["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert container(worker)["image"] == "superserve/worker-gpu:local"
    assert "replicas" not in worker["spec"]


def test_overlay_of_the_document_builds(tmp_path: Path) -> None:
    """The overlay that docs/kubernetes.md tells one to write gives each service the image of a registry."""
    (block,) = re.findall(r"```yaml\n# (\S+)\n(.*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    path = tmp_path / Path(block[0]).relative_to("deploy")
    path.parent.mkdir()
    path.write_text(block[1])
    images = {container(workload)["image"] for workload in of_kind(built("mine", folder), "Deployment")}
    assert images == {f"registry.example/superserve/{name}:0.1.0" for name in KINDS}


def test_each_service_has_a_url_of_its_own(tmp_path: Path) -> None:
    """With the component redis-users each service takes the URL of its own user from the Secret."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(FOLDER, folder)
    (folder / "overlays" / "mine").mkdir()
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../production"],
        "components": ["../../components/redis-users"],
    }
    (folder / "overlays" / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    for workload in of_kind(built("mine", folder), "Deployment"):
        validate(workload)
        urls = [variable for variable in container(workload)["env"] if variable["name"] == "REDIS_URL"]
        key = f"{workload['metadata']['name'].upper()}_REDIS_URL"
        assert urls == [{"name": "REDIS_URL", "valueFrom": {"secretKeyRef": {"name": "superserve-redis", "key": key}}}]


# -- pods -------------------------------------------------------------------------------------------------------------


@each_workload
def test_pod_is_hardened(workload: Document) -> None:
    """Each is what the level `restricted` admits and more: no root, a read-only root, no capability, no token."""
    spec, one = pod(workload), container(workload)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (
        f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
        == COMPOSE["x-hardened"]["user"]
    )
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] in {account["metadata"]["name"] for account in of_kind(BASE, "ServiceAccount")}
    assert "/tmp" in {mount["mountPath"] for mount in one["volumeMounts"]}
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])


@each_workload
def test_pod_takes_no_variables_of_services(workload: Document) -> None:
    """A Service named superserve would set SUPERSERVE_PORT=tcp://... in every pod; the links are off."""
    assert pod(workload)["enableServiceLinks"] is False


@each_workload
def test_pod_is_that_of_compose(workload: Document) -> None:
    """Image and limit of memory are those of compose.yaml, and memory is asked for in full."""
    service, one = COMPOSE["services"][workload["metadata"]["name"]], container(workload)
    assert one["image"] == re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["image"])
    memory = re.sub(r"\$\{\w+:-(\d+)([mg])\}", r"\1\2", service["deploy"]["resources"]["limits"]["memory"])
    assert one["resources"]["limits"] == {"memory": f"{memory[:-1]}{memory[-1].upper()}i"}
    assert one["resources"]["requests"]["memory"] == one["resources"]["limits"]["memory"]
    assert one["resources"]["requests"]["cpu"]


def test_redis_is_that_of_compose() -> None:
    """It keeps its data on a claim where its configuration writes, with the environment that its start script wants."""
    (redis,) = of_kind(REDIS, "StatefulSet")
    (claim,) = redis["spec"]["volumeClaimTemplates"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container(redis)["volumeMounts"]}
    lines = (ROOT / "deploy" / "compose" / "redis.conf").read_text().splitlines()
    assert {f"dir {mounted[claim['metadata']['name']]}", "appendonly yes"} <= set(lines)
    given = {variable["name"] for variable in container(redis)["env"]}
    assert given == set(re.findall(r"\$\{(\w+):\?", (ROOT / "deploy" / "compose" / "redis-start").read_text()))
    secret = yaml.safe_load((FOLDER / "components" / "redis" / "kustomization.yaml").read_text())["secretGenerator"][0]
    values = dict(literal.split("=", 1) for literal in secret["literals"])
    (service,) = of_kind(REDIS, "Service")
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert values["REDIS_URL"] == f"redis://:{values['REDIS_PASSWORD']}@{host}/0"


# -- settings ---------------------------------------------------------------------------------------------------------


@each_service
def test_settings_are_read(service: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each service starts by its environment: ports and hosts are those that manifests name, the rest its defaults."""
    kind = KINDS[service["metadata"]["name"]]
    for name in [name for name in os.environ if name.startswith("SUPERSERVE_")]:
        monkeypatch.delenv(name)
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    settings = load(kind, [], "superserve")
    assert settings.redis == environment(service)["REDIS_URL"]
    expected = {"metrics": settings.metrics_port}
    if isinstance(settings, GatewaySettings):
        expected |= {"http": settings.port, "grpc": settings.grpc_port}
        assert settings.host == "0.0.0.0"
        assert settings.port == GatewaySettings.model_fields["port"].default
    assert ports(service) == expected
    assert settings.metrics_host == "0.0.0.0"
    own = {"redis", "log_json", "host", "port", "grpc_port", "metrics_host", "metrics_port"}
    rest = settings.model_dump(exclude=own)
    assert rest == {name: kind.model_fields[name].default for name in rest}


@each_service
def test_every_variable_is_a_setting(service: Document) -> None:
    """Each variable of the shared settings is one of some service's, each of a container one of its own."""
    anyones = {name for kind in KINDS.values() for name in kind.model_fields}
    own = {variable["name"] for variable in container(service)["env"]} - {"REDIS_URL"}
    for name in environment(service).keys() - {"REDIS_URL"}:
        known = KINDS[service["metadata"]["name"]].model_fields if name in own else anyones
        assert name.startswith("SUPERSERVE_")
        assert name.removeprefix("SUPERSERVE_").lower() in known, name


@each_service
def test_grace_is_longer_than_draining(service: Document) -> None:
    """A pod is killed only after preStop, the grace period of its settings, and the second in which it ends hard."""
    stop = container(service).get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})["sleep"]["seconds"]
    draining = stop + float(environment(service)["SUPERSERVE_GRACE_S"]) + HARD_S
    assert pod(service)["terminationGracePeriodSeconds"] > draining
    assert (stop > 0) == (service["metadata"]["name"] == "gateway")  # the only one that is connected to


@each_service
def test_probes_ask_what_is_there(service: Document) -> None:
    """Each service has all three probes, of paths that its server has; none for life asks for readiness."""
    one = container(service)
    sources = {"metrics": ROOT / "common" / "monitor.py", "http": ROOT / "services" / "gateway" / "routes.py"}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        http = one[probe]["httpGet"]
        assert f'"{http["path"]}"' in sources[http["port"]].read_text()
        assert http["port"] in ports(service)
        assert http["path"].endswith("ready" if probe == "readinessProbe" else "live")
    annotations = service["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == environment(service)["SUPERSERVE_METRICS_PORT"]


# -- selectors --------------------------------------------------------------------------------------------------------


@each_workload
def test_workload_selects_its_own_pods(workload: Document) -> None:
    """Its selector, and those by which its pods are spread, take its pods and no other workload's."""
    spreads = pod(workload).get("topologySpreadConstraints", [])
    assert bool(spreads) == (workload["kind"] == "Deployment")
    for selector in [workload["spec"]["selector"], *(spread["labelSelector"] for spread in spreads)]:
        assert selected(selector) == [workload]


def targets() -> Iterator[tuple[str, Document, list[str]]]:
    """Name, selector and ports of everything that finds pods by their labels and connects to them."""
    for document in OURS:
        name = f"{document['kind']}-{document['metadata']['name']}"
        if document["kind"] == "Service":
            wanted = [port["targetPort"] for port in document["spec"]["ports"]]
            yield (
                name,
                {"matchLabels": document["spec"]["selector"]},
                wanted,
            )
        if document["kind"] == "NetworkPolicy":
            rules = document["spec"].get("ingress", [])
            yield name, document["spec"]["podSelector"], [port["port"] for rule in rules for port in rule["ports"]]
    (monitor,) = of_kind(MONITORING, "PodMonitor")
    yield "PodMonitor", monitor["spec"]["selector"], [e["port"] for e in monitor["spec"]["podMetricsEndpoints"]]


@pytest.mark.parametrize(("selector", "wanted"), [t[1:] for t in targets()], ids=[t[0] for t in targets()])
def test_selector_finds_pods_that_have_the_port(selector: Document, wanted: list[str]) -> None:
    """What a Service, a NetworkPolicy or the PodMonitor selects exists, and names its ports so."""
    assert selected(selector)
    for workload in selected(selector):
        assert set(wanted) <= ports(workload).keys()


def test_every_port_is_let_in() -> None:
    """All that comes in is denied but what a policy names, and these name each port there is."""
    (denied,) = [d for d in of_kind(BASE, "NetworkPolicy") if d["spec"]["podSelector"] == {}]
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for workload in WORKLOADS:
        policies = [d["spec"] for d in of_kind(OURS, "NetworkPolicy") if workload in selected(d["spec"]["podSelector"])]
        let_in = {port["port"] for policy in policies for rule in policy.get("ingress", []) for port in rule["ports"]}
        assert let_in == ports(workload).keys()


def test_services_have_the_ports_of_settings() -> None:
    """A Service's port is the container's, which is the settings' default: a URL is the same inside and out."""
    for service in of_kind(OURS, "Service"):
        (workload,) = selected({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert port["port"] == ports(workload)[port["targetPort"]]


def test_every_service_survives_a_drain() -> None:
    """Each Deployment has two pods and a budget that lets one of them go; the Redis to try it has neither."""
    budgets = of_kind(OURS, "PodDisruptionBudget")
    assert [selected(budget["spec"]["selector"]) for budget in budgets] == [[service] for service in SERVICES]
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets)
    assert all(service["spec"]["replicas"] == 2 for service in SERVICES)


# -- monitoring and scaling -------------------------------------------------------------------------------------------


def test_rules_are_those_of_monitoring() -> None:
    """The PrometheusRule has deploy/monitoring/rules.yml, all of it."""
    (rule,) = of_kind(MONITORING, "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_pod_monitor_names_jobs_as_rules_do() -> None:
    """The operator takes a pod's component for its job: the three that the rules and the scrape configuration know."""
    (monitor,) = of_kind(MONITORING, "PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    spec = monitor["spec"]
    assert spec.keys() == {"jobLabel", "selector", "podMetricsEndpoints"}
    assert [endpoint.keys() for endpoint in spec["podMetricsEndpoints"]] == [
        {"port", "path", "interval", "scrapeTimeout"}
    ]
    jobs = {w["spec"]["template"]["metadata"]["labels"][spec["jobLabel"]] for w in selected(spec["selector"])}
    assert jobs == KINDS.keys()
    for job in jobs:
        assert re.search(rf'up{{job=~"[\w|]*\b{job}\b', RULES.read_text())


def test_scaled_object_scales_workers() -> None:
    """It has KEDA's keys and Kubernetes' behaviour, scales the workers, keeps one, and comes down slower than up."""
    assert SCALED["apiVersion"] == "keda.sh/v1alpha1"
    spec = SCALED["spec"]
    assert spec.keys() == {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced",
        "triggers",
    }  # fmt: skip
    assert spec["scaleTargetRef"]["name"] in {service["metadata"]["name"] for service in SERVICES}
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert spec["advanced"].keys() == {"horizontalPodAutoscalerConfig"}
    behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]}
    scaler = {"scaleTargetRef": target, "maxReplicas": spec["maxReplicaCount"], "behavior": behaviour}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "worker"}}
    validate({**hpa, "spec": scaler})
    up, down = (behaviour[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown"))
    assert up < down
    for trigger in TRIGGERS.values():
        assert trigger.keys() == {"type", "name", "metricType", "metadata"}
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
        assert trigger["metadata"].keys() == {"serverAddress", "threshold", "ignoreNullValues", "query"}
        assert float(trigger["metadata"]["threshold"]) > 0
        assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA's are strings
    assert len(TRIGGERS) == len(spec["triggers"])


@pytest.mark.parametrize("name", TRIGGERS)
def test_queries_read_documented_metrics(name: str) -> None:
    """Each series is one of docs/metrics.md, of this namespace and of the model that the settings name."""
    rows = re.findall(r"^\| `(superserve_\w+)` \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    series = {metric + suffix for metric, kind in rows for suffix in SUFFIXES[kind]}
    query = TRIGGERS[name]["metadata"]["query"]
    found = re.findall(r"(superserve_\w+)(\{[^}]*\})?", query)
    assert found
    model = environment(SERVICES[0])["SUPERSERVE_MODEL"]
    for metric, labels in found:
        assert metric in series
        assert labels.startswith(f'{{namespace="superserve",model="{model}"')


LABELS = 'namespace="superserve",model="fashion-resnet"'


def workers_wanted(tmp_path: Path, series: dict[str, str], at: str) -> dict[str, int | None]:
    """What each trigger asks for at a time, by promtool, of series given every 10 s; None where it has no data.

    promtool says of a wrong expectation what it got: each test expects a number that cannot be.
    """
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: Debian's package prometheus")
    tests = [{
        "interval": "10s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": trigger["metadata"]["query"], "eval_time": at, "exp_samples": [{"labels": "{}", "value": -1}]}
            for trigger in TRIGGERS.values()
        ],
    }]  # fmt: skip
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    got = re.findall(r"^\s*got:\s*(.*)$", done.stdout + done.stderr, re.MULTILINE)
    assert len(got) == len(TRIGGERS), done.stdout + done.stderr
    wanted: dict[str, int | None] = {}
    for (name, trigger), said in zip(TRIGGERS.items(), got, strict=True):
        match = re.search(r"\{\} ([\d.eE+-]+|NaN)", said)
        wanted[name] = None
        if match is not None:
            wanted[name] = math.ceil(round(float(match[1]) / float(trigger["metadata"]["threshold"]), 6))
    return wanted


def mesh(
    debt: str, queries: str, queue: str, inference: str, instance: str = "a", workers: str = "4x60"
) -> dict[str, str]:
    """Series of one scheduler and one worker; values in promtool's notation."""
    of = f'{{{LABELS},instance="{instance}"'
    return {
        f"superserve_scheduler_accuracy_debt{of}}}": debt,
        f'superserve_scheduler_queries_total{of},outcome="dispatched"}}': queries,
        f"superserve_scheduler_queue_queries{of}}}": queue,
        f'superserve_scheduler_workers{of},state="busy"}}': workers,
        f'superserve_scheduler_workers{of},state="refused"}}': workers,
        f"superserve_worker_inference_seconds_sum{of}}}": inference,
    }


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("0x60", "0+1000x60", "0x60", "0+28x60"), (0, 0, 4)),  # all by the best subnet, 2.8 workers' worth of work
        (("400x60", "0+1000x60", "0x60", "0+38x60"), (8, 0, 6)),  # 4 points below it at 100 queries/s: twice as many
        (("90x60", "0+1000x60", "0x60", "0+38x60"), (0, 0, 6)),  # 0.9 points are borne
        (("9300x60", "0+1000x60", "500x60", "0+40x60"), (97, 8, 6)),  # everything is turned away
        (("0x60", "7x60", "0x60", "9x60"), (0, 0, 0)),  # no query: nothing is divided by nothing
    ],
    ids=["steady", "debt", "borne", "overload", "silent"],
)
def test_triggers_ask_for_workers(tmp_path: Path, given: tuple[str, str, str, str], wanted: tuple[int, ...]) -> None:
    """Beside four workers the debt asks for more by its points, the backlog and the work for what they need."""
    assert tuple(workers_wanted(tmp_path, mesh(*given), "5m").values()) == wanted


def test_triggers_count_a_change_of_the_leader_once(tmp_path: Path) -> None:
    """Half a minute after a standby took over, both have samples in the window: debt and backlog are those of one."""
    old = mesh("400x27 stale", "0+1000x27 stale", "128x27 stale", "0+20x60", workers="4x27 stale")
    new = mesh("0x27 400x32", "0x27 0+1000x32", "0x27 128x32", "0x60", instance="b", workers="0x27 4x32")
    wanted = workers_wanted(tmp_path, old | new, "5m")
    assert wanted.pop("accuracy-debt") in (8, 9)  # counted twice: 10; the rate lacks what fell between the two
    assert wanted == {"backlog": 2, "inference": 3}


def test_triggers_without_data_are_silent(tmp_path: Path) -> None:
    """Without a scrape no query answers 0, at which an HPA would come down; KEDA takes silence for a failure."""
    assert set(workers_wanted(tmp_path, {"up": "1x60"}, "5m").values()) == {None}
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in TRIGGERS.values()} == {"false"}
