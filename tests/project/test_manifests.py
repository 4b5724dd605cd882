"""The rendered manifests: compared with schemas, Pod Security, the routes, the settings, the benchmark, and each other."""

import copy
import hashlib
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from applications import RecordingLog, call_wsgi
from cgroup_files import write_proc_folder
from custom_resources import errors_in, is_custom
from doc_examples import commands_for
from edge_bundles import write_bundle
from kustomize_overlays import (
    DOCKERFILE,
    EDGE_IMAGE_ENV,
    IMAGE_ENV,
    KUBERNETES,
    KUSTOMIZATIONS,
    MANIFESTS,
    OVERLAYS,
    Object,
    containers,
    environment_of,
    environment_value,
    is_ours,
    kustomize,
    name_of,
    of_kind,
    our_deployments,
    our_pods,
    our_servers,
    pods,
    secrets,
    selector,
    settings_of,
    template_of,
    with_component,
)
from optional_programs import require_program
from pod_security import violations
from project import MODEL, ROOT

from iris_wsgi.cli.main import parser, wants_log_lines
from iris_wsgi.client.endpoint import address_of
from iris_wsgi.client.prober import LOOKUP_SECONDS
from iris_wsgi.cpu_limits import available_cpus
from iris_wsgi.factory import build
from iris_wsgi.model.golden import self_test
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.batch.exit_status import ExitStatus
from iris_wsgi.patterns.batch.options import Options, parse_file_options
from iris_wsgi.server.supervisor import KILL_AFTER_SECONDS
from iris_wsgi.settings import Settings

README = (MANIFESTS / "README.md").read_text()
PATTERNS = (ROOT / "docs/patterns.md").read_text()
# Commands of the documents that need a cluster.
COMMANDS = [line for parent in ("cluster", "copy") for fence in commands_for(parent) for line in fence.text.splitlines()]
# A disabled component is a comment in its overlay. The tests render each of them in a copy in which the line is active.
OFF = {
    f"{name}/{Path(match).name}": (name, match)
    for name in OVERLAYS
    for match in re.findall(r"^  # - (\S+)$", (MANIFESTS / name / "kustomization.yml").read_text(), re.MULTILINE)
}
RENDERS = [*OVERLAYS, *OFF]
# Overlays with jobs, and the role of the server behind the public Service.
JOBS = {"asynchronous": "asynchronous", "sync_async": "sync_async"}
JOBS |= {name: overlay for name, (overlay, _) in OFF.items() if overlay in JOBS}
# Overlays whose server calls other servers: the role of the server, and the roles of the other servers by component.
ASKING = {
    "prep_pred": ("prep", {"pred": "pred"}),
    "horizontal": ("gateway", {f"member-{name}": "member" for name in ("setosa", "versicolor", "virginica")}),
}
# Overlays that belong to another overlay, because they have no pods or no network policy.
BESIDE = {"release/to_blue": "release/blue", "release/to_green": "release/green", "batch/data": "batch"}
# Overlays with batch runs over tables and files, and the overlay that copies the file.
BATCH = ["batch", *(name for name, (overlay, _) in OFF.items() if overlay == "batch")]
NAMESPACE = "model-in-image"
# Prometheus may run in this namespace. It scrapes pods that otherwise only our servers reach.
MONITORING = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["monitoring"]}]}

# Accepted findings of checkov, with the reason.
EXCEPTIONS = {
    "CKV_K8S_15": "IfNotPresent: the image is loaded into the cluster, which may have no registry to pull from",
    "CKV_K8S_43": "a tag: an image that was loaded without a registry has no digest to pull by, and releases go by tag",
    "CKV_K8S_35": "a Secret in the environment: there are the server's settings, and there redis-cli looks for its password",
}
# Accepted findings for a single object.
EXCEPTIONS_OF = {
    ("CKV_K8S_8", "Pod.model-in-image.model-in-image-batch-data"): "no liveness probe: it sleeps, and ends by itself",
    ("CKV_K8S_9", "Pod.model-in-image.model-in-image-batch-data"): "no readiness probe: it receives no requests",
}


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """Objects of `kubectl apply -k`, by the name of the overlay."""
    require_program("kubectl")
    copies = tmp_path_factory.mktemp("components")
    folders = [MANIFESTS / name if name in OVERLAYS else with_component(*OFF[name], copies) for name in RENDERS]
    with ThreadPoolExecutor() as pool:
        return dict(zip(RENDERS, pool.map(kustomize, folders), strict=True))


@pytest.fixture(params=RENDERS)
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Objects of each overlay, together with the pods to which it belongs."""
    return rendered[request.param] + rendered.get(BESIDE.get(request.param), [])


def overlay_of(name: str) -> str:
    """Returns the overlay of a render. A render may have an additional component."""
    return OFF[name][0] if name in OFF else name


def only(objects: list[Object], kind: str) -> Object:
    (first,) = of_kind(objects, kind)
    return first


def jobs_of(objects: list[Object]) -> list[Object]:
    """Returns the Job specifications, including those of a CronJob."""
    return [obj["spec"]["jobTemplate"] if obj["kind"] == "CronJob" else obj for obj in of_kind(objects, "CronJob", "Job")]


def labels_of(template: Object) -> dict[str, str]:
    return template["metadata"]["labels"]


def component(obj: Object) -> str | None:
    """Returns the component of an object. The Namespace has none."""
    return obj["metadata"]["labels"].get("app.kubernetes.io/component")


def selects(obj: Object, template: Object) -> bool:
    return selector(obj).items() <= labels_of(template).items()


def is_upstream(obj: Object) -> bool:
    """Returns whether only our servers may call these pods."""
    return component(obj) in {name for _, upstreams in ASKING.values() for name in upstreams}


def peer_selects(peer: Object, template: Object) -> bool:
    """Returns whether a peer of a network policy selects these pods of our namespace."""
    if set(peer) == {"podSelector", "namespaceSelector"}:
        assert peer["namespaceSelector"] == MONITORING
        return False
    assert set(peer) == {"podSelector"}
    result, labels = peer["podSelector"], labels_of(template)
    assert set(result) <= {"matchLabels", "matchExpressions"} and result
    rules = result.get("matchExpressions", ())
    assert {rule["operator"] for rule in rules} <= {"In"}
    return result.get("matchLabels", {}).items() <= labels.items() and all(
        labels[rule["key"]] in rule["values"] for rule in rules
    )


def quantity(text: str | int) -> float:
    """Returns a Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|k|M|G)?", str(text)).groups()
    return float(number) * {None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def volume_claims(template: Object) -> list[str]:
    """Returns the names of the volume claims of a pod."""
    volumes = template["spec"].get("volumes", ())
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]


def limit(container: Object, resource: str) -> float:
    return quantity(container["resources"]["limits"][resource])


def request(container: Object, resource: str) -> float:
    return quantity(container["resources"]["requests"][resource])


def min_pods(deployment: Object, objects: list[Object]) -> int:
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        if scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]:
            return scaler["spec"]["minReplicas" if scaler["kind"] == "HorizontalPodAutoscaler" else "minReplicaCount"]
    return deployment["spec"]["replicas"]


def benchmark(column: str) -> float:
    """Returns a value of our server with one worker in docs/benchmark.md."""
    header = None
    for line in (ROOT / "docs/benchmark.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "server":
            header = cells
        elif cells[0] == "iris_wsgi" and header and column in header:
            return float(cells[header.index(column)].replace(",", ""))
    raise AssertionError(f"docs/benchmark.md has no column {column}")


# Schemas and hardening


@pytest.mark.long
def test_every_object_matches_the_strict_schemas_of_all_kubernetes_versions(rendered):
    import kubernetes_validate

    different = {json.dumps(obj, sort_keys=True): obj for objects in rendered.values() for obj in objects}
    builtin = [item for item in different.values() if not is_custom(item)]
    assert len(builtin) > 20
    for version in KUBERNETES:
        for item in builtin:
            # The validator returns the version that it used, and replaces an unknown version by an older one.
            assert kubernetes_validate.validate(item, version, strict=True) == version


def test_every_custom_resource_matches_the_types_of_its_operator(rendered):
    custom = [obj for objects in rendered.values() for obj in objects if is_custom(obj)]
    assert {obj["kind"] for obj in custom} == {"HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor"}
    for obj in custom:
        assert errors_in(obj) == [], name_of(obj)


@pytest.mark.long
@pytest.mark.parametrize("version", KUBERNETES)
def test_the_schemas_refuse_misspelled_fields(version):
    import kubernetes_validate

    deployment = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(deployment, version, strict=True)


@pytest.fixture(scope="session")
def checkov(rendered, tmp_path_factory) -> Object:
    """Findings of checkov in all renders. There is one run, because checkov starts slowly."""
    program = require_program("checkov")
    folder = tmp_path_factory.mktemp("checkov")
    for name, objects in rendered.items():
        (folder / f"{name.replace('/', '-')}.yml").write_text(yaml.safe_dump_all(objects))
    command = [program, "-d", str(folder), "--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "-o", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    try:
        return json.loads(result.stdout)
    except ValueError:
        pytest.fail(f"checkov did not answer: {result.stdout[-500:]} {result.stderr[-500:]}")


def test_checkov_finds_only_the_accepted_exceptions(checkov, rendered):
    found = {(check["check_id"], check["check_name"], check["resource"]) for check in checkov["results"]["failed_checks"]}
    assert not [item for item in found if item[0] not in EXCEPTIONS and (item[0], item[2]) not in EXCEPTIONS_OF]
    assert checkov["summary"]["parsing_errors"] == 0
    # checkov reports some findings a second time for the pods.
    assert checkov["summary"]["resource_count"] >= sum(map(len, rendered.values()))


def test_every_exception_from_checkov_is_still_needed(checkov):
    found = {(item["check_id"], item["resource"]) for item in checkov["results"]["failed_checks"]}
    assert set(EXCEPTIONS) <= {check for check, _ in found}
    assert set(EXCEPTIONS_OF) <= found


def test_every_pod_follows_the_pod_security_standard_restricted(objects):
    assert pods(objects)
    for template in pods(objects):
        assert violations(template) == set()


REMOVED = object()
OF_POD = [
    ("host namespaces", "hostNetwork", True),
    ("host namespaces", "hostPID", True),
    ("host namespaces", "hostIPC", True),
    ("host process", "securityContext.windowsOptions", {"hostProcess": True}),
    ("volumes", "volumes", [{"name": "a", "hostPath": {"path": "/"}}]),
    ("volumes", "volumes", [{"name": "a", "nfs": {"server": "a", "path": "/"}}]),
    ("volumes", "volumes", [{"name": "a", "emptyDir": {}}, {"name": "b", "image": {"reference": "b"}}]),
    ("AppArmor", "securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("SELinux", "securityContext.seLinuxOptions", {"user": "root"}),
    ("seccomp", "securityContext.seccompProfile", REMOVED),
    ("seccomp", "securityContext.seccompProfile.type", "Unconfined"),
    ("sysctls", "securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("non-root", "securityContext.runAsNonRoot", REMOVED),
    ("non-root", "securityContext.runAsNonRoot", False),
    ("root", "securityContext.runAsUser", 0),
]
OF_CONTAINER = [
    ("host process", "securityContext.windowsOptions", {"hostProcess": True}),
    ("privileged", "securityContext.privileged", True),
    ("privilege escalation", "securityContext.allowPrivilegeEscalation", REMOVED),
    ("privilege escalation", "securityContext.allowPrivilegeEscalation", True),
    ("capabilities", "securityContext.capabilities", REMOVED),
    ("capabilities", "securityContext.capabilities.drop", ["NET_RAW"]),
    ("capabilities", "securityContext.capabilities.add", ["CHOWN"]),
    ("host ports", "ports", [{"containerPort": 8000, "hostPort": 8000}]),
    ("hosts of probes", "livenessProbe.httpGet.host", "127.0.0.1"),
    ("hosts of probes", "readinessProbe", {"tcpSocket": {"port": 8000, "host": "example.com"}}),
    ("hosts of probes", "lifecycle", {"preStop": {"httpGet": {"port": 8000, "host": "example.com"}}}),
    ("AppArmor", "securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("SELinux", "securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("SELinux", "securityContext.seLinuxOptions", {"role": "system_r"}),
    ("proc mount", "securityContext.procMount", "Unmasked"),
    ("seccomp", "securityContext.seccompProfile", {"type": "Unconfined"}),
    ("non-root", "securityContext.runAsNonRoot", False),
    ("root", "securityContext.runAsUser", 0),
    ("privilege escalation", "securityContext", REMOVED),
]
BROKEN = [(rule, f"spec.{path}", value) for rule, path, value in OF_POD]
BROKEN += [
    (rule, f"spec.{group}.0.{path}", value)
    for rule, path, value in OF_CONTAINER
    for group in ("containers", "initContainers", "ephemeralContainers")
]
BROKEN.append(("AppArmor", "metadata.annotations", {"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}))


@pytest.mark.parametrize(("rule", "path", "value"), BROKEN, ids=[f"{rule}: {path}" for rule, path, _ in BROKEN])
def test_a_pod_that_violates_the_standard_is_found(rule, path, value):
    template = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())["spec"]["template"]
    for group in ("initContainers", "ephemeralContainers"):
        template["spec"][group] = copy.deepcopy(template["spec"]["containers"])
    assert violations(template) == set()
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    parent = template
    for step in way:
        parent = parent[step] if isinstance(step, int) else parent.setdefault(step, {})
    if value is REMOVED:
        del parent[last]
    else:
        parent[last] = value
    assert rule in violations(template)


def test_every_pod_is_hardened_beyond_the_standard(objects):
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE).groups())
    for template in pods(objects):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (user, group)
        for container in containers(template):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            # The container has arguments and no command, because the image has no shell.
            assert "command" not in container
            assert "lifecycle" not in container
            assert not is_ours(template) or "exec" not in json.dumps(container)


def test_the_namespace_enforces_the_standard(objects):
    for namespace in of_kind(objects, "Namespace"):
        labels = namespace["metadata"]["labels"]
        assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


# The server


def test_every_variable_in_the_manifests_is_a_setting_of_the_server(objects):
    for template in our_pods(objects):
        for container in containers(template):
            assert settings_of(container, objects).host == "0.0.0.0"
        for container in containers(template, "containers"):
            # Only a server behind a Service has traffic to redirect before it stops.
            served = any(selects(obj, template) for obj in of_kind(objects, "Service"))
            assert (settings_of(container, objects).grace_seconds > 0) == served


@pytest.fixture(scope="session")
def app_of(tmp_path_factory):
    """Returns the application of a container, with the model of the repository. The application does not connect to Redis."""
    built, folder, bundle = {}, tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("bundle")
    write_bundle(bundle)
    tokens = folder / "tokens"
    tokens.write_text("a-token-of-the-secret")

    def get(settings: Settings):
        settings = replace(settings, model_dir=str(MODEL), model_seal="", state_dir=str(folder))
        settings = replace(settings, edge_dir=settings.edge_dir and str(bundle), token_file=settings.token_file and str(tokens))
        if settings not in built:
            built[settings] = build(settings, RecordingLog()).app
        return built[settings]

    return get


def test_every_probe_calls_a_route_of_the_role_on_the_port_of_the_server(objects, app_of):
    for template in our_servers(objects):
        for container in containers(template, "containers"):
            settings = settings_of(container, objects)
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                http_get = container[kind]["httpGet"]
                assert ports[http_get["port"]] == settings.port == 8000
                path, _, query = http_get["path"].partition("?")
                assert "GET" in app_of(settings).table[path]
                # The upstream servers do not exist, so the server is alive and not ready.
                never_ready = path == "/readyz" and (settings.pred_url or settings.members)
                status, _, _ = call_wsgi(app_of(settings), "GET", path, QUERY_STRING=query)
                assert status == (503 if never_ready else 200)


def test_no_probe_fails_because_the_server_starts_or_drains(objects, make_app):
    """A failed probe is a warning in the events of the pod. The cluster itself removes a pod that ends from its Services."""
    stopping = make_app(role="web_single").service
    stopping.readiness.stopping = True
    assert call_wsgi(stopping.app, "GET", "/readyz")[0] == 503
    for template in our_servers(objects):
        for container in containers(template, "containers"):
            paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
            assert paths == {"startupProbe": "/livez", "readinessProbe": "/readyz?exclude=shutdown", "livenessProbe": "/livez"}
            for path, _, query in (path.partition("?") for path in paths.values()):
                assert call_wsgi(stopping.app, "GET", path, QUERY_STRING=query)[0] == 200
            assert container["startupProbe"]["initialDelaySeconds"] > benchmark("first response s")


def test_the_startup_probe_allows_a_multiple_of_the_measured_time_and_the_rollout_allows_more(objects):
    for deployment in our_deployments(objects):
        for container in containers(deployment["spec"]["template"], "containers"):
            probe = container["startupProbe"]
            allowed_seconds = probe["initialDelaySeconds"] + probe["periodSeconds"] * probe["failureThreshold"]
            assert allowed_seconds > 50 * benchmark("first response s")
            assert deployment["spec"]["progressDeadlineSeconds"] > allowed_seconds + deployment["spec"]["minReadySeconds"]


def test_the_grace_periods_add_up(objects):
    for template in our_servers(objects):
        allowed_seconds = template["spec"]["terminationGracePeriodSeconds"]
        for container in containers(template, "containers"):
            settings = settings_of(container, objects)
            waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert allowed_seconds >= waits + settings.grace_seconds + settings.drain_seconds + KILL_AFTER_SECONDS


# Working sets of pods under load, in MiB. The comment in base/deployment.yml says how they were measured.
WORKING_SETS = {"web_single": 26, "asynchronous": 36}


def test_memory_and_cpu_fit_the_measurements_of_the_benchmark(objects):
    for template in our_servers(objects):
        for container in containers(template):
            assert 1.5 < request(container, "memory") / (max(WORKING_SETS.values()) * 2**20) < 2
            assert 1.5 < limit(container, "memory") / (benchmark("after load MB") * 1e6) < 5
            # The comment in base/deployment.yml says about 5,000. With four Deployments on two CPUs it is a third of that.
            assert 1000 < request(container, "cpu") / (benchmark("CPU µs") * 1e-6) < 10_000
            assert request(container, "cpu") <= limit(container, "cpu")


def test_the_comments_on_resources_have_the_measured_values():
    for name in ("deployment", "hpa"):
        text = (MANIFESTS / f"base/{name}.yml").read_text()
        assert f"{WORKING_SETS['web_single']} MiB (web_single) to {WORKING_SETS['asynchronous']} MiB (jobs)" in text
    assert "241 MiB (SECURITY.md)" in (MANIFESTS / "base/deployment.yml").read_text()
    # The process, bodies, responses, and 16 threads with parsed documents.
    assert 65 + 2 * 8 + 16 * 40 * 0.25 == 241 < 256


def test_horizontal_fits_two_cpus_with_a_surge_of_each_deployment(rendered):
    # The pods of minikube itself and the metrics-server request 850m, and calico 250m more.
    deployments = our_deployments(rendered["horizontal"])
    assert len(deployments) == 4
    requested = sum(
        (min_pods(deployment, rendered["horizontal"]) + deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"])
        * request(container, "cpu")
        for deployment in deployments
        for container in containers(deployment["spec"]["template"])
    )
    assert requested <= 2 - 0.85 - 0.25


def test_the_cpu_limit_gives_one_worker_like_in_the_row_of_the_benchmark(objects, tmp_path):
    for template in our_pods(objects):
        for container in containers(template, "containers"):
            assert limit(container, "cpu") == 1
            proc = write_proc_folder(tmp_path, "/", {"/": {"cpu.max": f"{limit(container, 'cpu') * 100_000:.0f} 100000"}})
            assert settings_of(container, objects).workers or available_cpus(proc)[0] == 1


def test_volumes_in_memory_leave_room_for_the_server(objects):
    for template in our_pods(objects):
        in_memory = [item["emptyDir"]["sizeLimit"] for item in template["spec"].get("volumes", ()) if "emptyDir" in item]
        for container in containers(template):
            assert sum(map(quantity, in_memory)) + 1.5 * benchmark("after load MB") * 1e6 < limit(container, "memory")


def test_the_autoscaler_adds_a_pod_before_a_process_is_busy_and_none_for_an_idle_one(objects):
    for hpa in of_kind(objects, "HorizontalPodAutoscaler"):
        if hpa["spec"]["metrics"][0]["type"] == "External":
            # tests/project/test_components.py checks the scaling by the queue.
            continue
        target = hpa["spec"]["scaleTargetRef"]
        deployment = next(obj for obj in of_kind(objects, target["kind"]) if obj["metadata"]["name"] == target["name"])
        assert target["apiVersion"] == deployment["apiVersion"]
        # kustomize changes this name together with the name of the Deployment, or of an earlier one with the same name.
        assert hpa["metadata"]["labels"].items() <= deployment["metadata"]["labels"].items()
        (container,) = containers(deployment["spec"]["template"], "containers")
        expected = {
            metric["resource"]["name"]: metric["resource"]["target"]["averageUtilization"] / 100
            for metric in hpa["spec"]["metrics"]
        }
        assert set(expected) == {"cpu", "memory"}
        # The comments in base/hpa.yml and horizontal: the same CPU for each pod, and three quarters of the limit of memory.
        assert expected["cpu"] * request(container, "cpu") == pytest.approx(0.175, rel=0.01)
        assert expected["memory"] * request(container, "memory") == 0.75 * limit(container, "memory")
        # The autoscaler adds a pod at 10 % above the target, and removes one at 10 % below it.
        threshold = expected["memory"] * request(container, "memory")
        assert benchmark("after load MB") * 1e6 < 0.9 * threshold
        assert 1.1 * threshold < limit(container, "memory")
        assert 1.1 * expected["cpu"] * request(container, "cpu") < limit(container, "cpu")
        assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 10)
        assert set(hpa["spec"]["behavior"]) == {"scaleUp", "scaleDown"}


# Relations between objects


def test_every_selector_matches_pods_of_the_same_render(objects):
    for obj in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        assert [template for template in pods(objects) if selects(obj, template)], name_of(obj)


def test_every_deployment_selects_its_own_pods_and_has_one_disruption_budget_and_a_network_policy(objects):
    for deployment in of_kind(objects, "Deployment"):
        template = deployment["spec"]["template"]
        assert [name_of(obj) for obj in of_kind(objects, "Deployment") if selects(obj, template)] == [name_of(deployment)]
        # Kubernetes refuses the eviction of a pod with two budgets. A budget for a single pod has no effect, or blocks a drain.
        budgets = [obj for obj in of_kind(objects, "PodDisruptionBudget") if selects(obj, template)]
        assert len(budgets) == (0 if volume_claims(template) else 1)
        assert [obj for obj in of_kind(objects, "NetworkPolicy") if selects(obj, template)]
    for template in our_servers(objects):
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels_of(template).items()
            assert spread["matchLabelKeys"] == ["pod-template-hash"]
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


def test_ports_have_the_same_number_and_name_from_the_node_to_the_container(objects):
    for deployment in of_kind(objects, "Deployment"):
        template = deployment["spec"]["template"]
        name, number = ("http", 8000) if is_ours(template) else ("redis", 6379)
        ports = {
            port["name"]: port["containerPort"] for container in containers(template, "containers") for port in container["ports"]
        }
        assert ports == {name: number}
        for service in of_kind(objects, "Service"):
            if selects(service, template):
                assert [(port["name"], port["targetPort"], port["port"]) for port in service["spec"]["ports"]] == [
                    (name, name, number)
                ]
        for policy in of_kind(objects, "NetworkPolicy"):
            if selects(policy, template):
                (ingress,) = policy["spec"]["ingress"]
                assert ingress["ports"] == [{"protocol": "TCP", "port": number}]
                # The manifests do not restrict the callers of a public server.
                assert ("from" in ingress) == (is_upstream(policy) or not is_ours(template))
                assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_prometheus_finds_every_server_and_worker_and_the_policies_admit_it(objects):
    named = {"key": "app.kubernetes.io/name", "operator": "In", "values": ["prometheus"]}
    prometheus = {"namespaceSelector": MONITORING, "podSelector": {"matchExpressions": [named]}}
    for template in our_servers(objects):
        (container,) = containers(template, "containers")
        result = {"prometheus.io/scrape": "true", "prometheus.io/port": str(container["ports"][0]["containerPort"])}
        assert (
            template["metadata"]["annotations"] == result and labels_of(template)["app.kubernetes.io/part-of"] == "model-in-image"
        )
        for policy in of_kind(objects, "NetworkPolicy"):
            if selects(policy, template):
                (ingress,) = policy["spec"]["ingress"]
                assert prometheus in ingress.get("from", [prometheus])


def test_only_the_public_service_has_a_port_on_the_nodes(objects):
    for service in of_kind(objects, "Service"):
        known_names = service["metadata"]["name"] == "model-in-image-service"
        assert service["spec"]["type"] == ("NodePort" if known_names else "ClusterIP")
        assert [port.get("nodePort") for port in service["spec"]["ports"]] == [30080 if known_names else None]


def test_pods_call_only_their_model_job_table_and_item_servers_and_upstream_servers(rendered):
    for name, objects in rendered.items():
        for policy in of_kind(objects, "NetworkPolicy"):
            calls = name in ("model_load/over_http", "data_cache") or (name in JOBS and component(policy) in ("server", "worker"))
            calls |= name in BATCH and component(policy) == "batch-table"
            calls |= overlay_of(name) in ASKING and component(policy) == "server"
            assert bool(policy["spec"].get("egress")) == calls
            assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_items_are_in_the_database_of_a_secret_and_the_readme_has_a_valid_address(rendered):
    (server,) = containers(pods(rendered["data_cache"])[0])
    url = settings_of(server).database_url
    assert url in README and url.startswith("postgresql://") and not secrets(rendered["data_cache"])
    (authority,) = re.findall(r"sslrootcert=(\S+)", url)
    (mount,) = server["volumeMounts"]
    assert authority == f"{mount['mountPath']}/ca.crt" and mount["readOnly"]
    (policy,) = of_kind(rendered["data_cache"], "NetworkPolicy")
    assert [port["port"] for item in policy["spec"]["egress"] for port in item["ports"]] == [53, 53, 5432]


def test_the_bundle_is_served_from_its_folder_in_the_image(rendered, app_of):
    (server,) = containers(pods(rendered["edge"])[0])
    assert settings_of(server).edge_dir == EDGE_IMAGE_ENV["IRIS_EDGE_DIR"]
    assert f"COPY dist/edge {EDGE_IMAGE_ENV['IRIS_EDGE_DIR']}\n" in DOCKERFILE
    status, headers, _ = call_wsgi(app_of(settings_of(server)), "GET", "/edge/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert call_wsgi(app_of(settings_of(server)), "GET", "/metadata")[0] == 200


def test_tokens_are_files_of_a_secret_and_the_servers_see_their_changes(rendered, app_of):
    renders = [name for name, (_, element) in OFF.items() if element == "../token"]
    assert {overlay_of(name) for name in renders} == {"web_single", *ASKING}
    for name in renders:
        for template in our_servers(rendered[name]):
            (server,) = containers(template)
            (volume,) = [element for element in template["spec"]["volumes"] if "secret" in element]
            assert volume["secret"]["secretName"] in README and "optional" not in volume["secret"]
            (mount,) = [volumemount for volumemount in server["volumeMounts"] if volumemount["name"] == volume["name"]]
            (item,) = volume["secret"]["items"]
            assert mount["readOnly"] and "subPath" not in mount
            assert settings_of(server).token_file == f"{mount['mountPath']}/{item['path']}"
            assert call_wsgi(app_of(settings_of(server)), "GET", "/openapi.json")[0] == 401


def test_every_container_of_the_image_writes_only_json_lines(objects):
    for container in (
        one for template in our_pods(objects) for part in ("initContainers", "containers") for one in containers(template, part)
    ):
        assert not container.get("tty") and wants_log_lines(container.get("args", ["serve"])), container["args"]


def test_no_secret_is_in_the_manifests_except_the_sample_and_none_in_a_plain_variable_or_argument(rendered):
    secret = {field.name for field in fields(Settings) if field.metadata["check"]["secret"]}
    assert secret == {"redis_url", "database_url", "cache_redis_url"}
    for name, objects in rendered.items():
        # The name of the sample's Secret describes its purpose.
        assert all("sample" in unquote(value) for value in secrets(objects).values()), name
        for container in (item for template in our_pods(objects) for item in containers(template)):
            plain = {item["name"]: item["value"] for item in container.get("env", ()) if "value" in item}
            assert not [item for item in secret if plain.get(f"IRIS_{item.upper()}")]
            assert not re.search(r"://[^ ]*@|password|token=", " ".join([*plain.values(), *container.get("args", ())]))


def test_replicas_are_set_only_without_an_autoscaler(objects):
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    scaled = {obj["spec"]["scaleTargetRef"]["name"] for obj in scalers}
    # Two autoscalers of one Deployment would work against each other.
    assert len(scaled) == len(scalers)
    for deployment in of_kind(objects, "Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in scaled)


def test_every_disruption_budget_allows_one_eviction_while_all_pods_are_ready(objects):
    for budget in of_kind(objects, "PodDisruptionBudget"):
        replicas = min(
            min_pods(obj, objects) for obj in of_kind(objects, "Deployment") if selects(budget, obj["spec"]["template"])
        )
        assert budget["spec"].get("minAvailable", 0) < replicas
        assert budget["spec"].get("maxUnavailable", 1) >= 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_rollout_starts_a_new_pod_before_it_stops_an_old_one(objects):
    for deployment in of_kind(objects, "Deployment"):
        if volume_claims(deployment["spec"]["template"]):
            # A pod with a volume must stop first.
            assert deployment["spec"]["strategy"] == {"type": "Recreate"}
            assert deployment["spec"]["replicas"] == 1
        else:
            assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
            assert deployment["spec"]["minReadySeconds"] > 0


def test_labels_are_the_recommended_ones_and_agree(objects):
    for obj in objects:
        labels = obj["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/part-of"] == NAMESPACE
        if "instance" in str(labels):
            assert obj["metadata"]["name"].removesuffix(f"-{labels['app.kubernetes.io/instance']}").startswith("model-in-image-")
    for deployment in of_kind(objects, "Deployment"):
        assert deployment["metadata"]["labels"] == labels_of(deployment["spec"]["template"])
        expected = {f"app.kubernetes.io/{key}" for key in ("name", "component", "instance")}
        assert set(selector(deployment)) == (expected | {"track"} if is_ours(deployment["spec"]["template"]) else expected)
    for obj in of_kind(objects, "CronJob", "Job"):
        assert obj["metadata"]["labels"] == labels_of(template_of(obj))
    for obj in of_kind(objects, "CronJob", "Job", "Pod"):
        (policy,) = [other for other in of_kind(objects, "NetworkPolicy") if selects(other, template_of(obj))]
        assert component(policy) == component(obj)
    for obj in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        assert set(selector(obj)) == {f"app.kubernetes.io/{key}" for key in ("name", "component", "instance")}


# Files


def test_the_namespace_comes_first_and_contains_every_object(rendered):
    for objects in rendered.values():
        assert name_of(objects[0]) == ("Namespace", NAMESPACE)
        assert {obj["metadata"]["namespace"] for obj in objects[1:]} == {NAMESPACE}


def test_the_single_files_are_complete_in_their_documented_order():
    order = ["namespace.yml", "deployment.yml", "service.yml", "hpa.yml"]
    files = {
        name: list(yaml.safe_load_all((MANIFESTS / "base" / name).read_text())) for name in KUSTOMIZATIONS["base"]["resources"]
    }
    assert list(files)[:4] == order
    assert all(len(file) == 1 for file in files.values())
    assert [name_of(files[name][0]) for name in order] == [
        ("Namespace", "model-in-image"),
        ("Deployment", "model-in-image-deployment"),
        ("Service", "model-in-image-service"),
        ("HorizontalPodAutoscaler", "model-in-image-hpa"),
    ]
    assert all(obj["metadata"].get("namespace") == NAMESPACE for (obj,) in files.values() if obj["kind"] != "Namespace")
    positions = [README.index(f"`{name}`") for name in order]
    assert positions == sorted(positions)


def test_every_file_belongs_to_a_kustomization():
    known_names = {
        f"{name}/{file}"
        for name, kustomization in KUSTOMIZATIONS.items()
        for file in ["kustomization.yml", *kustomization.get("resources", ())]
    }
    # These files are for Prometheus, its adapter, and Grafana, and not for Kubernetes.
    known_names.add("jobs/external_metric/adapter.yml")
    assert {
        str(path.relative_to(MANIFESTS)) for path in MANIFESTS.rglob("*.yml") if path.parent.name != "observability"
    } <= known_names


def repeated_values(part: object, target_value: object) -> list[object]:
    """Yields the values of a patch that its target already has. Items of lists are matched by name, like in Kubernetes."""
    if isinstance(part, dict) and isinstance(target_value, dict):
        return [
            path
            for key in part.keys() & target_value.keys() - {"kind", "name"}
            for path in repeated_values(part[key], target_value[key])
        ]
    if (
        isinstance(part, list)
        and isinstance(target_value, list)
        and all(isinstance(item, dict) and "name" in item for item in part + target_value)
    ):
        by_name = {item["name"]: item for item in target_value}
        return [path for item in part if item["name"] in by_name for path in repeated_values(item, by_name[item["name"]])]
    return [part] if part == target_value else []


# Overlays with additional objects, and their purpose. All other overlays only contain patches.
HOLDERS = {"jobs/redis": {"redis"}, "batch": {"batch-table", "batch-file"}, "batch/data": {"batch-file"}}
HOLDERS |= {"ingress": {"server"}, "http_route": {"server"}, "observability/prometheus_rule": {"server"}}
HOLDERS |= {"observability/service_monitor": {"server", "worker"}, "jobs/keda": {"worker"}}


def test_only_the_base_and_the_listed_kustomizations_have_objects_and_patches_repeat_nothing():
    base = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    for name, kustomization in KUSTOMIZATIONS.items():
        if name in HOLDERS:
            files = [resource for resource in kustomization["resources"] if not (MANIFESTS / name / resource).is_dir()]
            assert {component(yaml.safe_load((MANIFESTS / name / file).read_text())) for file in files} == HOLDERS[name]
        elif name != "base":
            assert all((MANIFESTS / name / item / "kustomization.yml").exists() for item in kustomization.get("resources", ()))
        for patch in kustomization.get("patches", ()):
            assert set(patch) <= {"target", "patch", "options"}
            assert repeated_values(yaml.safe_load(patch["patch"]), base) == []


def test_a_patch_that_repeats_a_value_is_found():
    base = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    assert repeated_values({"spec": {"minReadySeconds": 5}}, base) == [5]
    server = {"name": "server", "image": "model-in-image-pattern:v1.0", "env": [{"name": "IRIS_DRAIN_SECONDS", "value": "10"}]}
    copied = repeated_values({"spec": {"template": {"spec": {"containers": [server]}}}}, base)
    assert set(copied) == {"model-in-image-pattern:v1.0", "10"}


def test_the_image_is_the_one_of_the_design_or_a_later_tag_of_it(rendered):
    (server,) = containers(pods(rendered["base"])[0])
    assert server["image"] == "model-in-image-pattern:v1.0"
    for objects in rendered.values():
        for template in pods(objects):
            images = {container["image"] for container in containers(template)}
            assert len(images) == 1
            assert re.fullmatch(r"(model-in-image-pattern:v\d+\.\d+(-full|-edge)?|(redis|busybox):\d+\.\d+)", images.pop())
            for container in containers(template):
                # The image without redis-py and psycopg is smaller.
                settings = settings_of(container, objects) if is_ours(template) else Settings()
                needs_full = settings.redis_url != "" or settings.database_url.startswith("postgresql:")
                assert container["image"].endswith("-full") == needs_full
                assert container["image"].endswith("-edge") == bool(settings.edge_dir)
            assert {container["imagePullPolicy"] for container in containers(template)} == {"IfNotPresent"}


def test_every_component_is_active_or_a_comment_in_an_overlay():
    # The list is empty if the disabled component is its only item.
    on = {
        (MANIFESTS / name / item).resolve()
        for name, kustomization in KUSTOMIZATIONS.items()
        for item in kustomization.get("components") or ()
    }
    off = {(MANIFESTS / overlay / item).resolve() for overlay, item in OFF.values()}
    assert on | off == {
        MANIFESTS / name for name, kustomization in KUSTOMIZATIONS.items() if kustomization["kind"] == "Component"
    }
    assert not on & off


def test_one_overlay_of_a_role_can_be_applied_over_another(rendered):
    for name in ("synchronous", "prediction_cache", "data_cache", "edge", *JOBS, *ASKING):
        before, after = rendered["web_single"], {name_of(item): item for item in rendered[name]}
        assert {name_of(item) for item in before} <= set(after)
        for obj in of_kind(before, "Deployment"):
            # Kubernetes does not allow changes of this field.
            assert selector(obj) == selector(after[name_of(obj)])


# Releases


def merge(*renders: list[Object]) -> list[Object]:
    """Returns the objects of a cluster after all these overlays were applied. Objects with the same name must agree."""
    cluster: dict[tuple[str, str], Object] = {}
    for item in (obj for objects in renders for obj in objects):
        assert cluster.setdefault(name_of(item), item) == item, f"{name_of(item)} is not the same in two overlays"
    return list(cluster.values())


@pytest.fixture
def releases(rendered) -> list[Object]:
    """Overlays that may run at the same time."""
    return merge(*(rendered[name] for name in ("web_single", "release/canary", "release/blue", "release/green")))


def test_releases_that_run_together_do_not_disturb_each_other(releases):
    assert len(of_kind(releases, "Deployment")) == 4
    test_every_deployment_selects_its_own_pods_and_has_one_disruption_budget_and_a_network_policy(releases)
    targets = [obj["spec"]["scaleTargetRef"]["name"] for obj in of_kind(releases, "HorizontalPodAutoscaler")]
    assert len(targets) == len(set(targets)) == 3


def test_each_service_leads_to_its_own_release(releases):
    leads = {
        service["metadata"]["name"]: {
            obj["metadata"]["name"] for obj in of_kind(releases, "Deployment") if selects(service, obj["spec"]["template"])
        }
        for service in of_kind(releases, "Service")
    }
    assert leads == {
        "model-in-image-service": {"model-in-image-deployment", "model-in-image-deployment-canary"},
        "model-in-image-service-blue": {"model-in-image-deployment-blue"},
        "model-in-image-service-green": {"model-in-image-deployment-green"},
    }


@pytest.mark.parametrize("colour", ["blue", "green"])
def test_the_switch_changes_the_selector_of_one_service_only(rendered, releases, colour):
    namespace, switched = rendered[f"release/to_{colour}"]
    known_names = next(obj for obj in of_kind(releases, "Service") if name_of(obj) == name_of(switched))
    assert namespace == only(releases, "Namespace")
    assert {**switched, "spec": {**switched["spec"], "selector": None}} == {
        **known_names,
        "spec": {**known_names["spec"], "selector": None},
    }
    led = [obj["metadata"]["name"] for obj in of_kind(releases, "Deployment") if selects(switched, obj["spec"]["template"])]
    assert led == [f"model-in-image-deployment-{colour}"]


def test_blue_and_green_differ_in_colour_and_tag_only(rendered):
    blue, green = (json.dumps(rendered[f"release/{colour}"]) for colour in ("blue", "green"))
    tags = [containers(pods(rendered[f"release/{colour}"])[0])[0]["image"] for colour in ("blue", "green")]
    assert tags[0] != tags[1]
    assert blue.replace("blue", "green").replace(*tags) == green


def test_the_clean_up_of_a_colour_finds_all_its_objects(rendered):
    kinds = {instance: kinds for kinds, instance in re.findall(r"delete (\S+) -l \S+/instance=(\S+)", "\n".join(COMMANDS))}
    # The public Service of web_single stays.
    assert f"{kinds['main']},service" == kinds["blue"]
    short = {"hpa": "horizontalpodautoscaler", "pdb": "poddisruptionbudget"}
    for colour in ("blue", "green"):
        own = rendered[f"release/{colour}"][1:]
        assert {obj["kind"].lower() for obj in own} == {short.get(kind, kind) for kind in kinds["blue"].split(",")}
        assert {obj["metadata"]["labels"]["app.kubernetes.io/instance"] for obj in own} == {colour}


def test_the_canary_is_one_pod_of_another_image_and_changes_no_running_object(rendered):
    (deployment,) = [item for item in rendered["release/canary"] if item not in rendered["web_single"]]
    stable = only(rendered["web_single"], "Deployment")
    assert name_of(deployment) == ("Deployment", "model-in-image-deployment-canary")
    assert deployment["spec"]["replicas"] == 1
    canary, stable_container = (containers(obj["spec"]["template"])[0] for obj in (deployment, stable))
    assert canary["image"] != stable_container["image"]
    assert {**canary, "image": None} == {**stable_container, "image": None}


# Jobs


@pytest.fixture(params=JOBS)
def jobs_overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Each overlay with jobs, with the sample Redis and with an external one."""
    return rendered[request.param]


@pytest.fixture(params=[name for name in JOBS if name not in OFF])
def redis_overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Each overlay with the sample Redis."""
    return rendered[request.param]


def of_component(objects: list[Object], name: str) -> Object:
    """Returns the pod template of the Deployment of a component."""
    (first,) = [obj for obj in of_kind(objects, "Deployment") if component(obj) == name]
    return first["spec"]["template"]


def redis_of(objects: list[Object]) -> tuple[Object, dict[str, str]]:
    """Returns the container of the sample Redis, and its command line as settings."""
    (container,) = containers(of_component(objects, "redis"))
    words = container["args"]
    assert all(word.startswith("--") for word in words[::2])
    return container, {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}


def test_overlays_with_jobs_differ_in_the_role_of_the_server_only(rendered):
    (one, first), (other, second) = (item for item in JOBS.items() if item[0] not in OFF)
    assert json.dumps(rendered[one]).replace(f'"{first}"', f'"{second}"') == json.dumps(rendered[other])


def test_workers_are_the_deployment_of_the_server_except_for_name_role_and_grace_period(jobs_overlay):
    server, worker = (of_component(jobs_overlay, name) for name in ("server", "worker"))
    result = {name: environment_of(containers(item)[0], jobs_overlay) for name, item in (("server", server), ("worker", worker))}
    differ = {key for key in result["server"] if result["server"][key] != result["worker"].get(key)}
    assert set(result["server"]) == set(result["worker"])
    assert differ == {"IRIS_ROLE", "IRIS_GRACE_SECONDS"}
    assert {**containers(server)[0], "env": None} == {**containers(worker)[0], "env": None}


def test_servers_and_workers_have_separate_autoscalers_budgets_and_policies_and_clients_reach_no_worker(jobs_overlay):
    scalers = of_kind(jobs_overlay, "HorizontalPodAutoscaler", "ScaledObject")
    for objects in (scalers, of_kind(jobs_overlay, "PodDisruptionBudget"), of_kind(jobs_overlay, "NetworkPolicy")):
        assert {"server", "worker"} <= {component(obj) for obj in objects}
    targets = [obj["spec"]["scaleTargetRef"]["name"] for obj in scalers]
    assert sorted(targets) == ["model-in-image-deployment", "model-in-image-deployment-worker"]
    for service in of_kind(jobs_overlay, "Service"):
        assert not selects(service, of_component(jobs_overlay, "worker"))


def test_the_address_of_redis_and_its_password_come_from_a_secret(jobs_overlay):
    for template in our_pods(jobs_overlay):
        (container,) = containers(template)
        (result,) = [item["valueFrom"]["secretKeyRef"] for item in container["env"] if item["name"] == "IRIS_REDIS_URL"]
        names = [obj["metadata"]["name"] for obj in of_kind(jobs_overlay, "Secret")]
        # The name of a generated Secret ends with a hash, so a new password causes a rollout.
        assert (result["name"] in names) if names else (result["name"] == "model-in-image-redis")


def test_the_address_in_the_sample_secret_is_that_of_the_sample_redis(redis_overlay):
    secret = only(redis_overlay, "Secret")
    service = next(obj for obj in of_kind(redis_overlay, "Service") if component(obj) == "redis")
    result = {key: value for (_, key), value in secrets(redis_overlay).items()}
    url = urlsplit(result["url"])
    assert set(result) == {"url", "password"}
    assert (url.scheme, url.hostname, url.port) == ("redis", service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    assert unquote(url.password) == result["password"]
    # The password shows that it is a sample.
    assert "sample" in result["password"] and "A SAMPLE" in (MANIFESTS / "jobs/redis/kustomization.yml").read_text()
    (container, words) = redis_of(redis_overlay)
    (variable,) = container["env"]
    assert words["requirepass"] == f"$({variable['name']})"
    assert variable["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "password"}


def test_redis_acknowledges_only_data_on_disk_and_evicts_nothing(redis_overlay):
    container, words = redis_of(redis_overlay)
    durable = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
    assert durable.items() <= words.items()
    promised = PATTERNS.partition("Redis must run with")[2]
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        assert f"`{name} {words[name]}`" in promised
    (template,) = [pod for pod in pods(redis_overlay) if not is_ours(pod)]
    (mount,) = container["volumeMounts"]
    (volume,) = template["spec"]["volumes"]
    claim = only(redis_overlay, "PersistentVolumeClaim")
    assert mount == {"name": volume["name"], "mountPath": words["dir"]}
    assert volume_claims(template) == [claim["metadata"]["name"]]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    # The user of Redis may write to the volume.
    assert template["spec"]["securityContext"]["fsGroup"] == template["spec"]["securityContext"]["runAsGroup"]
    max_memory = float(words["maxmemory"].removesuffix("mb")) * 2**20
    assert 2 * max_memory <= limit(container, "memory") == request(container, "memory")
    # Redis rewrites the file when its size has doubled. The old and the new file exist at the same time.
    assert 4 * max_memory <= quantity(claim["spec"]["resources"]["requests"]["storage"])
    assert int(words["port"]) == container["ports"][0]["containerPort"]


def test_redis_is_ready_when_it_responds_and_alive_while_it_reads_its_file(redis_overlay):
    container, _ = redis_of(redis_overlay)
    assert container["readinessProbe"]["exec"]["command"] == ["redis-cli", "-e", "ping"]
    assert container["livenessProbe"]["exec"]["command"] == ["redis-cli", "ping"]
    # The first probe of both comes when Redis listens.
    assert all(container[kind]["initialDelaySeconds"] >= 1 for kind in ("readinessProbe", "livenessProbe"))
    # redis-cli reads the password from this variable.
    assert [item["name"] for item in container["env"]] == ["REDISCLI_AUTH"]


def test_only_servers_and_workers_reach_redis_and_redis_calls_nothing(redis_overlay, rendered):
    policies = {component(obj): obj["spec"] for obj in of_kind(redis_overlay, "NetworkPolicy")}
    redis = of_component(redis_overlay, "redis")
    other_pods = [template for name in ("release/blue", "release/green") for template in pods(rendered[name])]
    ((ingress,), names) = policies["redis"]["ingress"], ("server", "worker")

    def lets_in(template: Object) -> bool:
        return any(item["podSelector"]["matchLabels"].items() <= labels_of(template).items() for item in ingress["from"])

    assert all(set(item) == {"podSelector"} for item in ingress["from"])
    assert all(lets_in(of_component(redis_overlay, name)) for name in names)
    assert not any(map(lets_in, [redis, *other_pods]))
    for name in names:
        dns, calls = policies[name]["egress"]
        assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
        (destinations,) = calls["to"]
        assert set(destinations) == {"podSelector"}
        assert calls["ports"] == ingress["ports"]
        reached = [
            pod
            for pod in [*pods(redis_overlay), *other_pods]
            if destinations["podSelector"]["matchLabels"].items() <= labels_of(pod).items()
        ]
        assert reached == [redis]


def test_an_external_redis_replaces_the_sample_completely(rendered):
    for name, (overlay, element) in OFF.items():
        if element != "../jobs/managed_redis":
            continue
        remaining = {name_of(element) for element in rendered[overlay] if component(element) != "redis"}
        assert {name_of(element) for element in rendered[name]} == remaining
        for template in pods(rendered[name]):
            (container,) = containers(template)
            url = urlsplit(settings_of(container).redis_url)
            (authority,) = parse_qs(url.query)["ssl_ca_certs"]
            (mount,), (volume,) = container["volumeMounts"], template["spec"]["volumes"]
            assert mount == {"name": volume["name"], "mountPath": str(Path(authority).parent), "readOnly": True}
            assert [item["path"] for item in volume["secret"]["items"]] == [Path(authority).name]
            assert volume["secret"]["optional"] is True
            assert f"?ssl_ca_certs={authority}" in README
        for policy in of_kind(rendered[name], "NetworkPolicy"):
            (rule,) = policy["spec"]["egress"]
            ports = [(port["protocol"], port["port"]) for port in rule["ports"]]
            assert ports == [("UDP", 53), ("TCP", 53), ("TCP", 6379), ("TCP", url.port)]


# Servers with upstream servers


@pytest.fixture(params=ASKING)
def caller_overlay(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Each overlay whose servers call upstream servers."""
    return rendered[request.param]


def upstream_deployments(objects: list[Object]) -> list[Object]:
    """Returns the Deployments of the upstream servers."""
    return [deployment for deployment in our_deployments(objects) if is_upstream(deployment)]


def public_deployment(objects: list[Object]) -> Object:
    """Returns the Deployment behind the public Service."""
    (first,) = [deployment for deployment in our_deployments(objects) if component(deployment) == "server"]
    return first


def upstream_addresses(deployment: Object) -> dict[str, str]:
    """Returns the addresses of the upstream servers, by component."""
    (container,) = containers(deployment["spec"]["template"])
    settings = settings_of(container)
    members = dict(pair.split("=", 1) for pair in settings.members.split(",") if pair)
    return {f"member-{name}": url for name, url in members.items()} | ({"pred": settings.pred_url} if settings.pred_url else {})


def test_each_role_and_each_member_of_the_image_has_its_own_deployment(rendered):
    for name, (role, upstreams) in ASKING.items():
        result = {
            component(deployment): settings_of(*containers(deployment["spec"]["template"]))
            for deployment in our_deployments(rendered[name])
        }
        assert {which: settings.role for which, settings in result.items()} == {"server": role, **upstreams}
        for which, settings in result.items():
            assert settings.member == (which.removeprefix("member-") if settings.role == "member" else "")
        targets = [obj["spec"]["scaleTargetRef"]["name"] for obj in of_kind(rendered[name], "HorizontalPodAutoscaler")]
        assert len(set(targets)) == len(targets) == len(result)
    species = {f"member-{folder.name}" for folder in (MODEL / "members").iterdir()}
    assert set(ASKING["horizontal"][1]) == species


def test_each_address_is_a_headless_service_of_the_ready_pods_of_its_component(caller_overlay):
    services = {obj["metadata"]["name"]: obj for obj in of_kind(caller_overlay, "Service")}
    positions = upstream_addresses(public_deployment(caller_overlay))
    assert set(positions) == {component(item) for item in upstream_deployments(caller_overlay)}
    for which, url in positions.items():
        service = services.pop(address_of(url).host)
        assert service["spec"]["clusterIP"] == "None" and not service["spec"].get("publishNotReadyAddresses")
        # Behind a headless Service, clients use the port of the pod.
        assert [port["port"] for port in service["spec"]["ports"]] == [address_of(url).port] == [8000]
        assert [
            component(deployment)
            for deployment in our_deployments(caller_overlay)
            if selects(service, deployment["spec"]["template"])
        ] == [which]
    assert [component(item) for item in services.values()] == ["server"]


# Time for which the name servers of a cluster cache an address (kubeadm's `ttl 30`, and `cache 30`).
NAMED_SECONDS = 30


def test_an_upstream_server_serves_until_no_client_has_its_address_any_more(caller_overlay):
    for deployment in upstream_deployments(caller_overlay):
        (container,) = containers(deployment["spec"]["template"])
        assert settings_of(container).grace_seconds > NAMED_SECONDS + LOOKUP_SECONDS


def test_a_rollout_of_a_caller_allows_the_time_for_its_upstream_servers(caller_overlay):
    own = public_deployment(caller_overlay)
    (container,) = containers(own["spec"]["template"])
    probe = container["startupProbe"]
    start = probe["initialDelaySeconds"] + probe["periodSeconds"] * probe["failureThreshold"]
    needed = start + own["spec"]["minReadySeconds"] + NAMED_SECONDS + LOOKUP_SECONDS
    for deployment in upstream_deployments(caller_overlay):
        assert own["spec"]["progressDeadlineSeconds"] > deployment["spec"]["progressDeadlineSeconds"] + needed


def policies_allow(side: str, template: Object, other: Object, objects: list[Object]) -> bool:
    """Returns whether network policies let pods call others (egress), or be called by them (ingress), on their port."""
    peers = "to" if side == "egress" else "from"
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy") if selects(policy, template)]
    assert policies
    return any(
        {"protocol": "TCP", "port": 8000} in rule["ports"]
        and (peers not in rule or any(peer_selects(peer, other) for peer in rule[peers]))
        for policy in policies
        for rule in policy.get(side, ())
    )


def test_servers_reach_their_upstream_servers_and_nothing_else_is_reachable(rendered):
    # Other pods of the namespace. Each side must refuse the connections that the other side might allow.
    besides = merge(rendered["release/blue"], rendered["release/green"], rendered["batch"])
    besides += [asynchronou for asynchronou in rendered["asynchronous"] if component(asynchronou) in ("worker", "redis")]
    for name in ASKING:
        objects = merge(rendered[name], besides)
        expected = {("server", "main", which) for which in ASKING[name][1]}
        pairs = [(pod, other) for pod in pods(objects) for other in pods(objects)]
        called, let_in = (
            {(component(item), labels_of(item)["app.kubernetes.io/instance"], component(other)) for item, other in found}
            for found in (
                [(item, other) for item, other in pairs if policies_allow("egress", item, other, objects)],
                [
                    (item, other)
                    for item, other in pairs
                    if is_upstream(other) and policies_allow("ingress", other, item, objects)
                ],
            )
        )
        assert called == let_in == expected
        policy = next(obj for obj in of_kind(rendered[name], "NetworkPolicy") if component(obj) == "server")
        names, calls = policy["spec"]["egress"]
        assert names == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
        assert calls["ports"] == [{"protocol": "TCP", "port": 8000}]


@pytest.fixture(scope="session")
def next_release(rendered, tmp_path_factory) -> dict[str, list[Object]]:
    """Overlays after the command of the README for a release with other models."""
    (command,) = [line for line in COMMANDS if line.startswith("sed ")]
    copy = tmp_path_factory.mktemp("next")
    shutil.copytree(MANIFESTS, copy / "manifests")
    subprocess.run(["sh", "-c", command], cwd=copy, check=True, timeout=60)
    return {name: kustomize(copy / "manifests" / name) for name in ASKING}


@pytest.mark.parametrize("name", ASKING)
def test_a_release_with_other_models_runs_next_to_the_old_one_until_the_caller_uses_it(name, rendered, next_release):
    before, after = ({name_of(obj): obj for obj in objects} for objects in (rendered[name], next_release[name]))
    # Only the Deployment of the caller changes, in its image and the addresses of its upstream servers.
    changed = {which for which in before.keys() & after.keys() if before[which] != after[which]}
    assert changed == {("Deployment", "model-in-image-deployment")}
    old, new = (public_deployment(list(objects.values())) for objects in (before, after))
    assert upstream_addresses(old).keys() == upstream_addresses(new).keys()
    assert not set(upstream_addresses(old).values()) & set(upstream_addresses(new).values())
    images = [containers(obj["spec"]["template"])[0]["image"] for obj in (old, new)]
    assert images[0] != images[1]
    assert {containers(obj["spec"]["template"])[0]["image"] for obj in upstream_deployments(list(after.values()))} == {images[1]}
    assert json.dumps(old).replace(images[0], images[1]).replace("models-1", "models-2") == json.dumps(new)
    # While both releases exist, each name leads to its own pods, and the servers reach both.
    both = list({**before, **after}.values())
    test_every_deployment_selects_its_own_pods_and_has_one_disruption_budget_and_a_network_policy(both)
    for service in of_kind(both, "Service"):
        assert len([obj for obj in our_deployments(both) if selects(service, obj["spec"]["template"])]) == 1
    assert len(upstream_deployments(both)) == 2 * len(ASKING[name][1])
    for deployment in upstream_deployments(both):
        arrow_ends = new["spec"]["template"], deployment["spec"]["template"]
        assert policies_allow("egress", *arrow_ends, both) and policies_allow("ingress", *reversed(arrow_ends), both)


@pytest.mark.parametrize("name", ASKING)
def test_the_clean_up_of_old_models_finds_all_their_objects_and_no_others(name, rendered):
    (kinds,) = re.findall(r"delete (\S+) -l app.kubernetes.io/instance=models-1$", "\n".join(COMMANDS), re.MULTILINE)
    own = [obj for obj in rendered[name] if obj["metadata"]["labels"].get("app.kubernetes.io/instance") == "models-1"]
    short = {"hpa": "horizontalpodautoscaler", "pdb": "poddisruptionbudget"}
    assert {obj["kind"].lower() for obj in own} == {short.get(kind, kind) for kind in kinds.split(",")}
    assert [obj for obj in rendered[name] if obj not in own and "-models-1" in obj["metadata"]["name"]] == []
    assert all(is_upstream(item) for item in own)


# Batch runs over tables and files

DAY_SECONDS = 86400


@pytest.fixture(params=BATCH)
def with_batch(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """Overlay as it is, and with each disabled component."""
    return rendered[request.param]


def arguments(container: Object, **of_pod: str) -> list[str]:
    """Returns the arguments of the command. Kubernetes replaces $(NAME) by variables of the container only."""
    result = {item["name"]: environment_value(item, {}) for item in container["env"]} | of_pod
    return [re.sub(r"\$\((\w+)\)", lambda found: result[found[1]], word) for word in container["args"]]


def batch_of(objects: list[Object], kind: str) -> tuple[Object, Object, Object]:
    """Returns the specification of the Jobs of this kind, their pod specification, and the container."""
    item = only(objects, kind)
    (container,) = containers(template_of(item))
    (job,) = jobs_of([item])
    return job["spec"], template_of(item)["spec"], container


def parsed(words: list[str]) -> dict[str, Any]:
    return vars(parser(words).parse_args(words))


def shard_of(container: Object, index: int) -> Options:
    """Returns the shard of the pod with this index. Invalid arguments raise."""
    return parse_file_options(parsed(arguments(container, JOB_COMPLETION_INDEX=str(index))))


def test_the_cron_job_scores_a_table_of_the_database_in_the_secret(with_batch):
    _, _, container = batch_of(with_batch, "CronJob")
    allowed_seconds = parsed(arguments(container))
    assert allowed_seconds["command"] == "batch" and allowed_seconds["table"] and not allowed_seconds["source"]
    (result,) = container["env"]
    assert result["valueFrom"]["secretKeyRef"] == {"name": "model-in-image-database", "key": "url"}
    assert "create secret generic model-in-image-database --from-file=url=" in README


def test_the_certificate_authority_of_the_database_is_a_file_of_the_secret(with_batch):
    _, pod, container = batch_of(with_batch, "CronJob")
    (authority,) = parse_qs(urlsplit(settings_of(container).database_url).query)["sslrootcert"]
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": str(Path(authority).parent), "readOnly": True}
    assert [item["path"] for item in volume["secret"]["items"]] == [Path(authority).name]
    assert volume["secret"]["optional"] is True
    assert f"sslrootcert={authority}" in README


def test_the_indexed_job_runs_the_command_once_for_each_shard_of_one_file(with_batch):
    job, _, container = batch_of(with_batch, "Job")
    assert job["completionMode"] == "Indexed"
    shards = [shard_of(container, index) for index in range(job["completions"])]
    assert [shard.shard for shard in shards] == [(index, job["completions"]) for index in range(job["completions"])]
    assert len({shard.source for shard in shards}) == 1
    outputs = {shard.target.path for shard in shards} | {shard.errors.path for shard in shards}
    assert len(outputs) == 2 * len(shards) and shards[0].source.path not in outputs
    # Only this argument distinguishes the lines of the shards.
    assert all(shard.keep for shard in shards)
    (result,) = container["env"]
    field = result["valueFrom"]["fieldRef"]["fieldPath"]
    assert (result["name"], field) == ("JOB_COMPLETION_INDEX", "metadata.annotations['batch.kubernetes.io/job-completion-index']")


def test_all_shards_share_a_volume_to_which_their_user_can_write(with_batch):
    job, pod, container = batch_of(with_batch, "Job")
    claim = only(with_batch, "PersistentVolumeClaim")
    (mount,) = container["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert volume_claims({"spec": pod}) == [claim["metadata"]["name"]]
    assert not mount.get("readOnly")
    for index in range(job["completions"]):
        shard = shard_of(container, index)
        assert {Path(path).parent for path in (shard.source.path, shard.target.path, shard.errors.path)} == {
            Path(mount["mountPath"])
        }
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    # A volume of a single node admits one pod at a time.
    assert claim["spec"]["accessModes"] == (["ReadWriteMany"] if job["parallelism"] > 1 else ["ReadWriteOnce"])
    assert job["parallelism"] in (1, job["completions"])


def test_the_file_is_copied_to_the_volume_of_the_shards_by_their_user_before_they_begin(rendered):
    job, pod, container = batch_of(rendered["batch"], "Job")
    assert job["suspend"] is True
    assert """'{"spec": {"suspend": false}}'""" in README
    bringer = only(rendered["batch/data"], "Pod")
    (copier,) = containers(bringer)
    assert bringer["spec"]["securityContext"] == pod["securityContext"]
    assert (bringer["spec"]["volumes"], copier["volumeMounts"]) == (pod["volumes"], container["volumeMounts"])
    assert f"cp in.csv {bringer['metadata']['name']}:{shard_of(container, 0).source.path}" in README
    assert f"cp {bringer['metadata']['name']}:{shard_of(container, 0).target.path} " in README


def test_each_exit_status_is_retried_or_not_as_the_readme_says(with_batch):
    rows = re.findall(r"^\| (\d) \| (.*) \|$", PATTERNS, re.MULTILINE)
    assert {int(status) for status, _ in rows} == set(ExitStatus)
    again = {int(status) for status, what in rows if what.endswith("the same command resumes the run")}
    for obj in of_kind(with_batch, "CronJob", "Job"):
        job, pod, container = batch_of(with_batch, obj["kind"])
        # Kubernetes applies the first matching rule.
        fails, disrupted, counts = job["podFailurePolicy"]["rules"]
        assert fails["action"] == "FailJob" and set(fails["onExitCodes"]["values"]) == set(ExitStatus) - again - {ExitStatus.GOOD}
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert counts["action"] == "Count" and set(counts["onExitCodes"]["values"]) == again
        for rule in (fails, counts):
            assert (rule["onExitCodes"]["operator"], rule["onExitCodes"]["containerName"]) == ("In", container["name"])
        # Only with this policy does the Job apply the rules, and no two pods do the same work.
        assert (pod["restartPolicy"], job["podReplacementPolicy"]) == ("Never", "Failed")
        indexed = job.get("completionMode") == "Indexed"
        assert [name for name in ("backoffLimit", "backoffLimitPerIndex") if name in job] == [
            "backoffLimitPerIndex" if indexed else "backoffLimit"
        ]


def test_a_nightly_run_ends_before_the_next_one_and_its_retries_before_its_deadline(with_batch):
    cron = only(with_batch, "CronJob")["spec"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", cron["schedule"])
    assert (cron["timeZone"], cron["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")
    for obj in of_kind(with_batch, "CronJob", "Job"):
        job, pod, _ = batch_of(with_batch, obj["kind"])
        latest = cron["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] + pod["terminationGracePeriodSeconds"]
        assert latest < DAY_SECONDS
        pauses = [min(10 * 2**i, 600) for i in range(job.get("backoffLimit", job.get("backoffLimitPerIndex")))]
        assert sum(pauses) < job["activeDeadlineSeconds"]
        # The history may have any length.
        assert (
            max(cron["successfulJobsHistoryLimit"], cron["failedJobsHistoryLimit"]) * DAY_SECONDS < job["ttlSecondsAfterFinished"]
        )
    # Pods that share a table must all succeed, so that the last pod has scored the rows left by the others.
    assert cron["jobTemplate"]["spec"]["completions"] == cron["jobTemplate"]["spec"]["parallelism"]


def test_a_batch_pod_has_the_cpu_of_a_server_and_no_more_memory_and_listens_on_no_port(with_batch, rendered):
    (server,) = containers(pods(rendered["base"])[0])
    for template in our_pods(with_batch):
        (container,) = containers(template)
        assert request(container, "cpu") == request(server, "cpu") and limit(container, "cpu") == limit(server, "cpu")
        assert request(container, "memory") == limit(container, "memory") <= limit(server, "memory")
        assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & set(container)
    assert not of_kind(with_batch, "Service")


def test_the_pods_of_a_table_call_a_database_only_and_those_of_a_file_call_nothing(with_batch):
    policies = {component(obj): obj["spec"] for obj in of_kind(with_batch, "NetworkPolicy")}
    assert set(policies) == {"batch-table", "batch-file"}
    assert not any(policy.get("ingress") for policy in policies.values())
    (rule,) = policies["batch-table"]["egress"]
    assert set(rule) == {"ports"}
    (container,) = containers(template_of(only(with_batch, "CronJob")))
    port = urlsplit(settings_of(container).database_url).port
    assert [(item["protocol"], item["port"]) for item in rule["ports"]] == [("UDP", 53), ("TCP", 53), ("TCP", port)]


def test_batch_runs_and_other_overlays_do_not_disturb_each_other(rendered):
    batches = rendered["batch"][1:] + rendered["batch/data"][1:]
    for name in set(OVERLAYS) - {"batch", "batch/data"}:
        other_pods = rendered[name][1:]
        assert not {name_of(batch) for batch in batches} & {name_of(other) for other in other_pods}
        for ones, templates in ((other_pods, pods(batches)), (batches, pods(other_pods))):
            for obj in of_kind(ones, "Service", "PodDisruptionBudget", "NetworkPolicy"):
                assert not [template for template in templates if selects(obj, template)]


# Other models


def loaded_model(objects: list[Object]) -> tuple[Object, Object, dict[str, Object]]:
    """Returns the initContainer, the server, and the volumes."""
    (template,) = pods(objects)
    (load,), (server,) = containers(template, "initContainers"), containers(template, "containers")
    return load, server, {volume["name"]: volume for volume in template["spec"]["volumes"]}


def mounts(container: Object) -> dict[str, Object]:
    return {volumemount["mountPath"]: volumemount for volumemount in container["volumeMounts"]}


def test_the_digest_in_the_manifest_is_that_of_the_model_next_to_it(rendered):
    content = (MANIFESTS / "model_load/model/golden.json").read_bytes()
    load, _, _ = loaded_model(rendered["model_load"])
    seal = parsed(load["args"])["seal"]
    assert seal == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert seal in (MANIFESTS / "model_load/load/kustomization.yml").read_text()


def test_the_model_next_to_the_manifest_is_a_different_one_and_passes_its_self_test():
    model, golden = load_model(MANIFESTS / "model_load/model")
    assert self_test(model, golden.cases, golden.tolerance)


def test_the_config_map_has_every_file_of_the_digest(rendered):
    cluster = only(rendered["model_load"], "ConfigMap")
    _, golden = load_model(MANIFESTS / "model_load/model")
    assert {*cluster["data"], *cluster["binaryData"]} == {"golden.json", *golden.files}
    assert {path.name for path in (MANIFESTS / "model_load/model").iterdir()} == {"golden.json", *golden.files}
    _, _, volumes = loaded_model(rendered["model_load"])
    assert volumes["source"]["configMap"]["name"] == cluster["metadata"]["name"] != "model-in-image-model"


@pytest.mark.parametrize("name", ["model_load", "model_load/fallback_to_image", "model_load/over_http"])
def test_the_server_reads_the_loaded_files_and_cannot_write_to_them(rendered, name):
    load, server, volumes = loaded_model(rendered[name])
    command, source, folder, *_ = load["args"]
    assert command == "load"
    assert settings_of(server).model_dir == folder
    written, read = mounts(load)[folder], mounts(server)[folder]
    assert written["name"] == read["name"]
    assert (written.get("readOnly", False), read["readOnly"]) == (False, True)
    assert volumes[read["name"]]["emptyDir"]["medium"] == "Memory"
    if source.startswith("/"):
        assert mounts(load)[source]["readOnly"] is True
        assert "configMap" in volumes[mounts(load)[source]["name"]]
    # Path of the model in the image for --or-baked.
    assert settings_of(load).model_dir == IMAGE_ENV["IRIS_MODEL_DIR"] != folder


def test_the_model_of_the_image_is_the_fallback_only_where_the_manifest_says_so(rendered):
    result = {name: "--or-baked" in loaded_model(rendered[name])[0]["args"] for name in RENDERS if name.startswith("model_load")}
    assert result == {"model_load": False, "model_load/fallback_to_image": True, "model_load/over_http": False}


def test_the_model_comes_from_a_url_only_over_http(rendered):
    sources = {name: loaded_model(rendered[name])[0]["args"][1] for name in RENDERS if name.startswith("model_load")}
    assert {name: source.startswith("http://") for name, source in sources.items()} == {
        name: name == "model_load/over_http" for name in sources
    }


# Documents


def test_the_readme_names_the_existing_directories():
    table = re.findall(r"`manifests/([\w/]+)`", "\n".join(re.findall(r"^\|.*\|$", README, re.MULTILINE)))
    assert sorted(table) == sorted(KUSTOMIZATIONS)
    for name in re.findall(r"manifests/([\w/.]*\w)", README):
        assert (MANIFESTS / name).exists(), name


def test_every_overlay_is_applied_by_a_command_of_the_readme_and_every_command_names_existing_files(rendered):
    applied = {found[1] for line in COMMANDS if (found := re.match(r"kubectl apply -k manifests/(\S+)$", line))}
    # The script applies the overlay that changes the Service.
    applied |= {f"release/to_{found[1]}" for line in COMMANDS if (found := re.match(r"manifests/release/switch (\w+)$", line))}
    assert applied == set(OVERLAYS) - {"base"}
    short = {"hpa": "HorizontalPodAutoscaler", "service": "Service", "deployment": "Deployment"}
    short |= {"cronjob": "CronJob", "job": "Job", "pod": "Pod"}
    names = {name_of(obj) for objects in rendered.values() for obj in objects}
    found = [
        (short[kind], name)
        for kind, name in re.findall(rf"\b({'|'.join(short)})[/ ](model-in-image-[\w-]+)", "\n".join(COMMANDS))
    ]
    assert len(found) > 8
    assert set(found) <= names
    # tests/project/test_manifest_commands.py checks that they are the images of the overlays.
    archives = {line.split()[-1] for line in COMMANDS if line.startswith("minikube image load ")}
    assert archives == {"dist/image.tar", "dist/image-full.tar", "dist/image-edge.tar"}
    (port,) = only(rendered["base"], "Service")["spec"]["ports"]
    assert re.findall(r"\$\(minikube ip\):(\d+)/", "\n".join(COMMANDS)) == [str(port["nodePort"])]
    without_namespace = (
        "kubectl apply -k manifests/",
        "kubectl apply -f manifests/base/namespace.yml",
        "kubectl create namespace ",
    )
    assert {line for line in COMMANDS if line.startswith("kubectl ") and not line.startswith("kubectl -n ")} == {
        line for line in COMMANDS if line.startswith(without_namespace)
    }


def test_every_pattern_has_a_drawing():
    assert [title for title in re.split(r"^#+ ", README, flags=re.MULTILINE)[1:] if "```mermaid\n" not in title] == []
    assert {name for overlays, _ in DRAWINGS for name in overlays} == set(OVERLAYS) - {"base"}


# Each drawing, with the overlays in its title.
DRAWINGS = [
    (re.findall(r"manifests/([\w/]+)", title), lines)
    for title, lines in re.findall(
        r"^```mermaid\n%%[^\n]*\nflowchart (?:LR|TB)\n  accTitle: ([^\n]*)\n(.*?)^```$", README, re.M | re.S
    )
]
DRAWN = ("Service", "Deployment", "CronJob", "Job", "Pod", "PersistentVolumeClaim")
ARROW = r" (?:-->|-\.->)(?:\|\"[^|]*\"\|)? "


def label(obj: Object, objects: list[Object]) -> list[str]:
    """Returns the text of an object in a drawing: its kind, its name, and the pods of a Deployment."""
    kind, name = name_of(obj)
    if kind != "Deployment":
        return [kind, name]
    replicas = min_pods(obj, objects)
    max_memory = [
        hpa["spec"]["maxReplicas"]
        for hpa in of_kind(objects, "HorizontalPodAutoscaler")
        if hpa["spec"]["scaleTargetRef"]["name"] == name
    ]
    return [kind, name, f"{replicas} to {max_memory[0]} pods" if max_memory else f"{replicas} pod{'s' * (replicas > 1)}"]


@pytest.mark.parametrize(("overlays", "lines"), DRAWINGS, ids=[overlays[0] for overlays, _ in DRAWINGS])
def test_a_drawing_shows_the_objects_of_its_overlays_and_the_targets_of_their_services(overlays, lines, rendered):
    objects = {
        name_of(obj): obj for name in overlays for obj in rendered[name] if obj["kind"] in (*DRAWN, "HorizontalPodAutoscaler")
    }
    named = {node: text.split("<br/>") for node, text in re.findall(rf'(\w+)[\[({{]+"((?:{"|".join(DRAWN)})<br/>[^"]*)"', lines)}
    drawn_objects = list(objects.values())
    result = sorted(label(obj, drawn_objects) for obj in of_kind(drawn_objects, *DRAWN))
    assert sorted([text[0], text[1], *text[-1:]] if text[0] == "Deployment" else text[:2] for text in named.values()) == result
    for deployment in our_deployments(drawn_objects):
        (role,) = [text[2:-1] for text in named.values() if text[:2] == ["Deployment", deployment["metadata"]["name"]]]
        (container,) = containers(deployment["spec"]["template"], "containers")
        caption = {f"role {settings_of(container, rendered[overlays[0]]).role}", container["image"].partition(":")[2]}
        assert len(role) == 1 and role[0] in caption
    arrow_ends = [[re.match(r"\w+", part)[0] for part in re.split(ARROW, line.strip())] for line in lines.splitlines()]
    arrows = {pair for line in arrow_ends for pair in pairwise(line)}
    # The switch of blue and green leads to a different release in each overlay.
    services = [obj for name in overlays for obj in of_kind(rendered[name], "Service")]
    leads = {
        (service["metadata"]["name"], obj["metadata"]["name"])
        for service in services
        for obj in of_kind(drawn_objects, "Deployment")
        if selects(service, obj["spec"]["template"])
    }
    assert {(named[job_id][1], named[other][1]) for job_id, other in arrows if named.get(job_id, "?")[0] == "Service"} == leads
