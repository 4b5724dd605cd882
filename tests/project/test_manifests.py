"""Manifests: rendered, then held against schemas, Pod Security, the routes, the settings, the benchmark and each other."""

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
from doc_examples import commands_for
from edge_bundles import write_bundle
from kustomize_overlays import (
    DOCKERFILE,
    EDGE_IMAGE_ENV,
    IMAGE_ENV,
    KUSTOMIZATIONS,
    MANIFESTS,
    OVERLAYS,
    Object,
    containers,
    environment_of,
    environment_value,
    is_ours,
    kustomize,
    of_kind,
    our_deployments,
    our_pods,
    our_servers,
    pods,
    secrets,
    settings_of,
    template_of,
)
from optional_programs import require_program
from project import MODEL, ROOT

from iris_wsgi.cli.main import parser
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
# What the documents ask of a cluster.
COMMANDS = [line for place in ("cluster", "copy") for fence in commands_for(place) for line in fence.text.splitlines()]
# A component that is off is a comment in the overlay that it can be turned on in; each is rendered there, uncommented.
OFF = {
    f"{name}/{Path(match).name}": (name, match)
    for name in OVERLAYS
    for match in re.findall(r"^  # - (\S+)$", (MANIFESTS / name / "kustomization.yml").read_text(), re.MULTILINE)
}
# What one of them takes the place of.
REPLACES = {"../jobs/managed_redis": "../jobs/redis"}
RENDERS = [*OVERLAYS, *OFF]
# The overlays with jobs, and what role is behind the Service that clients know.
JOBS = {"asynchronous": "asynchronous", "sync_async": "sync_async"}
JOBS |= {name: overlay for name, (overlay, _) in OFF.items() if overlay in JOBS}
# The overlays whose servers ask others: the role of the server, and those whom it asks, by component.
ASKING = {
    "prep_pred": ("prep", {"pred": "pred"}),
    "horizontal": ("gateway", {f"member-{name}": "member" for name in ("setosa", "versicolor", "virginica")}),
}
# What an overlay is applied next to that has no pods, or no network policy, of its own.
BESIDE = {"release/to_blue": "release/blue", "release/to_green": "release/green", "batch/data": "batch"}
# The overlays with whole tables and files, and the one that brings the file.
BATCH = ["batch", *(name for name, (overlay, _) in OFF.items() if overlay == "batch")]
KUBERNETES = ("1.32", "1.34", "1.37")
NAMESPACE = "model-in-image"
# Where a Prometheus may be that looks at pods which otherwise only servers reach.
MONITORING = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["monitoring"]}]}

# Each finding of checkov that stays, with the reason.
EXCEPTIONS = {
    "CKV_K8S_15": "IfNotPresent: the image is loaded into the cluster, which may have no registry to pull from",
    "CKV_K8S_43": "a tag: an image that was loaded without a registry has no digest to pull by, and releases go by tag",
    "CKV_K8S_35": "a Secret in the environment: there are the server's settings, and there redis-cli looks for its password",
}
# Those that stay for one object alone.
EXCEPTIONS_OF = {
    ("CKV_K8S_8", "Pod.model-in-image.model-in-image-batch-data"): "no liveness probe: it sleeps, and ends by itself",
    ("CKV_K8S_9", "Pod.model-in-image.model-in-image-batch-data"): "no readiness probe: nobody sends it anything",
}


def uncommented(overlay: str, component: str, into: Path) -> Path:
    """A copy of the manifests in which the component is on; the overlay's folder in it."""
    folder = Path(shutil.copytree(MANIFESTS, into / f"{overlay}-{Path(component).name}")) / overlay
    file = folder / "kustomization.yml"
    text = file.read_text().replace(f"  # - {component}\n", f"  - {component}\n")
    if component in REPLACES:
        line = f"  - {REPLACES[component]}\n"
        assert line in text
        text = text.replace(line, "")
    file.write_text(text)
    return folder


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    """What `kubectl apply -k` sends, by the name of the directory."""
    require_program("kubectl")
    copies = tmp_path_factory.mktemp("components")
    folders = [MANIFESTS / name if name in OVERLAYS else uncommented(*OFF[name], copies) for name in RENDERS]
    with ThreadPoolExecutor() as pool:
        return dict(zip(RENDERS, pool.map(kustomize, folders), strict=True))


@pytest.fixture(params=RENDERS)
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """One render after the other, with the pods that a switch is applied next to."""
    return rendered[request.param] + rendered.get(BESIDE.get(request.param), [])


def overlay_of(name: str) -> str:
    """Of a render, which may have a component more."""
    return OFF[name][0] if name in OFF else name


def only(objects: list[Object], kind: str) -> Object:
    (first,) = of_kind(objects, kind)
    return first


def name_of(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def jobs_of(objects: list[Object]) -> list[Object]:
    """What says how Jobs run: that of the Job itself, and what the CronJob makes Jobs of."""
    return [obj["spec"]["jobTemplate"] if obj["kind"] == "CronJob" else obj for obj in of_kind(objects, "CronJob", "Job")]


def labels_of(template: Object) -> dict[str, str]:
    return template["metadata"]["labels"]


def selector(obj: Object) -> dict[str, str]:
    """The labels by which an object selects pods."""
    spec = obj["spec"]
    if obj["kind"] == "Service":
        return spec["selector"]
    return (spec.get("podSelector") or spec["selector"])["matchLabels"]


def component(obj: Object) -> str | None:
    """What it is for; the Namespace is for all."""
    return obj["metadata"]["labels"].get("app.kubernetes.io/component")


def selects(obj: Object, template: Object) -> bool:
    return selector(obj).items() <= labels_of(template).items()


def is_asked(obj: Object) -> bool:
    """Whether only servers may ask it."""
    return component(obj) in {name for _, asked in ASKING.values() for name in asked}


def picks(peer: Object, template: Object) -> bool:
    """Whether a network policy means these pods, of our namespace, by that peer."""
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


def amount(text: str | int) -> float:
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|k|M|G)?", str(text)).groups()
    return float(number) * {None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def claims(template: Object) -> list[str]:
    """The names of the disks that the pod has."""
    volumes = template["spec"].get("volumes", ())
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]


def limit(container: Object, resource: str) -> float:
    return amount(container["resources"]["limits"][resource])


def request(container: Object, resource: str) -> float:
    return amount(container["resources"]["requests"][resource])


def least_pods(deployment: Object, objects: list[Object]) -> int:
    for hpa in of_kind(objects, "HorizontalPodAutoscaler"):
        if hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]:
            return hpa["spec"]["minReplicas"]
    return deployment["spec"]["replicas"]


def benchmark(column: str) -> float:
    """What docs/benchmark.md says of our server with one worker."""
    header = None
    for line in (ROOT / "docs/benchmark.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "server":
            header = cells
        elif cells[0] == "iris_wsgi" and header and column in header:
            return float(cells[header.index(column)].replace(",", ""))
    raise AssertionError(f"docs/benchmark.md has no column {column}")


# Schemas and hardening


def test_every_object_fits_the_strict_schemas_of_three_kubernetes_versions(rendered):
    import kubernetes_validate

    different = {json.dumps(obj, sort_keys=True): obj for objects in rendered.values() for obj in objects}
    assert len(different) > 20
    for version in KUBERNETES:
        for item in different.values():
            # The version that was used, since an unknown one is replaced by an older.
            assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.long
@pytest.mark.parametrize("version", KUBERNETES)
def test_the_schemas_refuse_what_is_misspelt(version):
    import kubernetes_validate

    deployment = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(deployment, version, strict=True)


@pytest.fixture(scope="session")
def checkov(rendered, tmp_path_factory) -> Object:
    """What checkov found in all renders, in one run because its start is slow."""
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


def test_checkov_finds_nothing_but_the_exceptions(checkov, rendered):
    found = {(check["check_id"], check["check_name"], check["resource"]) for check in checkov["results"]["failed_checks"]}
    assert not [item for item in found if item[0] not in EXCEPTIONS and (item[0], item[2]) not in EXCEPTIONS_OF]
    assert checkov["summary"]["parsing_errors"] == 0
    # It counts pods too, once more.
    assert checkov["summary"]["resource_count"] >= sum(map(len, rendered.values()))


def test_every_exception_from_checkov_is_still_needed(checkov):
    found = {(item["check_id"], item["resource"]) for item in checkov["results"]["failed_checks"]}
    assert set(EXCEPTIONS) <= {check for check, _ in found}
    assert set(EXCEPTIONS_OF) <= found


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
# Those of the first version of the standard; later ones have more.
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(template: Object) -> set[str]:
    """The rules of the Pod Security Standard "restricted" (Kubernetes 1.37, with what it has of "baseline") that a pod breaks."""
    pod = template["spec"]
    all_containers = containers(template, "containers", "initContainers", "ephemeralContainers")
    own = pod.get("securityContext") or {}
    theirs = [container.get("securityContext") or {} for container in all_containers]
    contexts = [own, *theirs]
    capabilities = [their.get("capabilities") or {} for their in theirs]
    handlers = [
        container.get(probe) or {}
        for container in all_containers
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    handlers += [handler for container in all_containers for handler in (container.get("lifecycle") or {}).values()]
    annotations = (template["metadata"].get("annotations") or {}).items()
    armor = {value for key, value in annotations if key.startswith("container.apparmor.security.beta.kubernetes.io/")}
    linux = [context["seLinuxOptions"] for context in contexts if context.get("seLinuxOptions")]

    def everywhere(key: str, allowed) -> bool:
        """Set for the pod or for each container, and nowhere to anything else."""
        result = [context.get(key) for context in contexts]
        return all(allowed(item) for item in result if item is not None) and (result[0] is not None or None not in result)

    rules = {
        "host namespaces": not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
        "host process": not any((context.get("windowsOptions") or {}).get("hostProcess") for context in contexts),
        "privileged": not any(their.get("privileged") for their in theirs),
        "privilege escalation": all(their.get("allowPrivilegeEscalation") is False for their in theirs),
        "capabilities": all(
            "ALL" in capability.get("drop", ()) and set(capability.get("add", ())) <= {"NET_BIND_SERVICE"}
            for capability in capabilities
        ),
        "volumes": all(len(set(item) & VOLUMES) == 1 and len(item) == 2 for item in pod.get("volumes", ())),
        "host ports": not any(port.get("hostPort") for container in all_containers for port in container.get("ports", ())),
        "hosts of probes": not any((item.get(way) or {}).get("host") for item in handlers for way in ("httpGet", "tcpSocket")),
        "AppArmor": all((context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") in PROFILES for context in contexts)
        and all(item in {"", "runtime/default"} or item.startswith("localhost/") for item in armor),
        "SELinux": all(item.get("type", "") in SELINUX and not item.get("user") and not item.get("role") for item in linux),
        "proc mount": all(their.get("procMount", "Default") == "Default" for their in theirs),
        "seccomp": everywhere("seccompProfile", lambda item: item.get("type") in PROFILES),
        "sysctls": {item["name"] for item in own.get("sysctls", ())} <= SYSCTLS,
        "non-root": everywhere("runAsNonRoot", lambda item: item is True),
        "root": not any(context.get("runAsUser") == 0 for context in contexts),
    }
    return {rule for rule, kept in rules.items() if not kept}


def test_every_pod_keeps_the_pod_security_standard_restricted(objects):
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
def test_a_pod_that_breaks_the_standard_is_found(rule, path, value):
    template = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())["spec"]["template"]
    for group in ("initContainers", "ephemeralContainers"):
        template["spec"][group] = copy.deepcopy(template["spec"]["containers"])
    assert violations(template) == set()
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = template
    for step in way:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
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
            # What it is told to do is an argument of its entry point: our image has no shell.
            assert "command" not in container
            assert "lifecycle" not in container
            assert not is_ours(template) or "exec" not in json.dumps(container)


def test_the_namespace_enforces_the_standard_that_the_pods_keep(objects):
    for namespace in of_kind(objects, "Namespace"):
        labels = namespace["metadata"]["labels"]
        assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


# What the server is


def test_every_variable_in_the_manifests_is_a_setting_that_the_server_takes(objects):
    for template in our_pods(objects):
        for container in containers(template):
            assert settings_of(container, objects).host == "0.0.0.0"
        for container in containers(template, "containers"):
            # Only who is behind a Service has traffic that must turn away first.
            served = any(selects(obj, template) for obj in of_kind(objects, "Service"))
            assert (settings_of(container, objects).grace_seconds > 0) == served


@pytest.fixture(scope="session")
def app_of(tmp_path_factory):
    """The application that a container serves, with the model of the repository; its Redis is asked nothing."""
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


def test_every_probe_asks_a_route_of_the_role_on_the_port_that_it_serves(objects, app_of):
    for template in our_servers(objects):
        for container in containers(template, "containers"):
            settings = settings_of(container, objects)
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                ask = container[kind]["httpGet"]
                assert ports[ask["port"]] == settings.port == 8000
                assert "GET" in app_of(settings).table[ask["path"]]
                # Here nobody is there whom it could ask: then it is alive and not ready.
                alone = ask["path"] == "/readyz" and (settings.pred_url or settings.members)
                assert call_wsgi(app_of(settings), "GET", ask["path"])[0] == (503 if alone else 200)


def test_only_readiness_asks_what_says_no_while_the_server_drains(objects):
    for template in our_servers(objects):
        for container in containers(template, "containers"):
            asked = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
            assert asked == {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def test_a_start_has_many_times_the_seconds_that_were_measured_and_the_rollout_waits_longer(objects):
    for deployment in our_deployments(objects):
        for container in containers(deployment["spec"]["template"], "containers"):
            probe = container["startupProbe"]
            given = probe["periodSeconds"] * probe["failureThreshold"]
            assert given > 50 * benchmark("first response s")
            assert deployment["spec"]["progressDeadlineSeconds"] > given + deployment["spec"]["minReadySeconds"]


def test_the_grace_periods_add_up(objects):
    for template in our_servers(objects):
        given = template["spec"]["terminationGracePeriodSeconds"]
        for container in containers(template, "containers"):
            settings = settings_of(container, objects)
            waits = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert given >= waits + settings.grace_seconds + settings.drain_seconds + KILL_AFTER_SECONDS


def test_memory_and_cpu_fit_what_the_benchmark_measured(objects):
    for template in our_servers(objects):
        for container in containers(template):
            assert request(container, "memory") == limit(container, "memory")
            assert 1.5 < limit(container, "memory") / (benchmark("after load MB") * 1e6) < 5
            # The comment in base/deployment.yml says some 3,000.
            assert 2000 < request(container, "cpu") / (benchmark("CPU µs") * 1e-6) < 5000
            assert request(container, "cpu") <= limit(container, "cpu")


def test_the_cpu_limit_gives_one_worker_as_in_the_row_of_the_benchmark(objects, tmp_path):
    for template in our_pods(objects):
        for container in containers(template, "containers"):
            assert limit(container, "cpu") == 1
            proc = write_proc_folder(tmp_path, "/", {"/": {"cpu.max": f"{limit(container, 'cpu') * 100_000:.0f} 100000"}})
            assert settings_of(container, objects).workers or available_cpus(proc)[0] == 1


def test_volumes_in_memory_leave_room_for_the_server(objects):
    for template in our_pods(objects):
        in_memory = [item["emptyDir"]["sizeLimit"] for item in template["spec"].get("volumes", ()) if "emptyDir" in item]
        for container in containers(template):
            assert sum(map(amount, in_memory)) + 1.5 * benchmark("after load MB") * 1e6 < limit(container, "memory")


def test_the_autoscaler_wants_no_pod_for_idling_and_one_before_a_process_is_busy(objects):
    for hpa in of_kind(objects, "HorizontalPodAutoscaler"):
        target = hpa["spec"]["scaleTargetRef"]
        deployment = next(obj for obj in of_kind(objects, target["kind"]) if obj["metadata"]["name"] == target["name"])
        assert target["apiVersion"] == deployment["apiVersion"]
        # kustomize changes the name here where it changes that of the Deployment, or of another with the same name before.
        assert hpa["metadata"]["labels"].items() <= deployment["metadata"]["labels"].items()
        (container,) = containers(deployment["spec"]["template"], "containers")
        expected = {
            metric["resource"]["name"]: metric["resource"]["target"]["averageUtilization"] / 100
            for metric in hpa["spec"]["metrics"]
        }
        assert set(expected) == {"cpu", "memory"}
        # It scales when the share is a tenth above the target, and down again when it is a tenth below.
        assert benchmark("after load MB") * 1e6 / request(container, "memory") < 0.9 * expected["memory"]
        assert expected["memory"] < 1
        assert 1.1 * expected["cpu"] * request(container, "cpu") < limit(container, "cpu")
        assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 10)
        assert set(hpa["spec"]["behavior"]) == {"scaleUp", "scaleDown"}


# How the objects go together


def test_every_selector_finds_the_pods_of_the_same_render(objects):
    for obj in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        assert [template for template in pods(objects) if selects(obj, template)], name_of(obj)


def test_every_deployment_selects_its_own_pods_and_has_one_disruption_budget_and_a_network_policy(objects):
    for deployment in of_kind(objects, "Deployment"):
        template = deployment["spec"]["template"]
        assert [name_of(obj) for obj in of_kind(objects, "Deployment") if selects(obj, template)] == [name_of(deployment)]
        # The eviction of a pod that two budgets select is refused; one for the only pod would mean nothing, or block a drain.
        budgets = [obj for obj in of_kind(objects, "PodDisruptionBudget") if selects(obj, template)]
        assert len(budgets) == (0 if claims(template) else 1)
        assert [obj for obj in of_kind(objects, "NetworkPolicy") if selects(obj, template)]
    for template in our_servers(objects):
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels_of(template).items()
            assert spread["matchLabelKeys"] == ["pod-template-hash"]
            assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


def test_ports_have_one_number_and_one_name_from_the_node_to_the_container(objects):
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
                # Who may ask a server that clients know is not for it to say.
                assert ("from" in ingress) == (is_asked(policy) or not is_ours(template))
                assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_prometheus_finds_every_server_and_worker_and_is_let_in(objects):
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


def test_only_the_service_that_clients_know_has_a_port_on_the_nodes(objects):
    for service in of_kind(objects, "Service"):
        known = service["metadata"]["name"] == "model-in-image-service"
        assert service["spec"]["type"] == ("NodePort" if known else "ClusterIP")
        assert [port.get("nodePort") for port in service["spec"]["ports"]] == [30080 if known else None]


def test_nobody_is_called_but_for_a_model_over_http_for_jobs_for_a_table_for_items_and_by_who_asks_others(rendered):
    for name, objects in rendered.items():
        for policy in of_kind(objects, "NetworkPolicy"):
            calls = name in ("model_load/over_http", "data_cache") or (name in JOBS and component(policy) in ("server", "worker"))
            calls |= name in BATCH and component(policy) == "batch-table"
            calls |= overlay_of(name) in ASKING and component(policy) == "server"
            assert bool(policy["spec"].get("egress")) == calls
            assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_items_are_in_the_database_of_a_secret_and_its_address_in_the_readme_is_the_one_that_is_tried(rendered):
    (server,) = containers(pods(rendered["data_cache"])[0])
    url = settings_of(server).database_url
    assert url in README and url.startswith("postgresql://") and not secrets(rendered["data_cache"])
    (authority,) = re.findall(r"sslrootcert=(\S+)", url)
    (mount,) = server["volumeMounts"]
    assert authority == f"{mount['mountPath']}/ca.crt" and mount["readOnly"]
    (policy,) = of_kind(rendered["data_cache"], "NetworkPolicy")
    assert [port["port"] for item in policy["spec"]["egress"] for port in item["ports"]] == [53, 53, 5432]


def test_the_bundle_is_served_from_where_its_image_has_it(rendered, app_of):
    (server,) = containers(pods(rendered["edge"])[0])
    assert settings_of(server).edge_dir == EDGE_IMAGE_ENV["IRIS_EDGE_DIR"]
    assert f"COPY dist/edge {EDGE_IMAGE_ENV['IRIS_EDGE_DIR']}\n" in DOCKERFILE
    status, headers, _ = call_wsgi(app_of(settings_of(server)), "GET", "/edge/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert call_wsgi(app_of(settings_of(server)), "GET", "/metadata")[0] == 200


def test_tokens_are_files_of_a_secret_whose_changes_the_servers_see(rendered, app_of):
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


def test_no_secret_is_in_the_manifests_but_the_sample_and_none_in_a_plain_variable_or_argument(rendered):
    secret = {field.name for field in fields(Settings) if field.metadata["check"]["secret"]}
    assert secret == {"redis_url", "database_url", "cache_redis_url"}
    for name, objects in rendered.items():
        # The sample's says what it is.
        assert all("sample" in unquote(value) for value in secrets(objects).values()), name
        for container in (item for template in our_pods(objects) for item in containers(template)):
            plain = {item["name"]: item["value"] for item in container.get("env", ()) if "value" in item}
            assert not [item for item in secret if plain.get(f"IRIS_{item.upper()}")]
            assert not re.search(r"://[^ ]*@|password|token=", " ".join([*plain.values(), *container.get("args", ())]))


def test_replicas_are_set_only_where_nothing_scales_them(objects):
    scaled = {obj["spec"]["scaleTargetRef"]["name"] for obj in of_kind(objects, "HorizontalPodAutoscaler")}
    for deployment in of_kind(objects, "Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in scaled)


def test_no_disruption_budget_can_block_the_drain_of_a_node(objects):
    for budget in of_kind(objects, "PodDisruptionBudget"):
        least = min(
            least_pods(obj, objects) for obj in of_kind(objects, "Deployment") if selects(budget, obj["spec"]["template"])
        )
        assert budget["spec"].get("minAvailable", 0) < least
        assert budget["spec"].get("maxUnavailable", 1) >= 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_rollout_has_a_new_pod_ready_before_an_old_one_goes(objects):
    for deployment in of_kind(objects, "Deployment"):
        if claims(deployment["spec"]["template"]):
            # Of those that have a disk the old one must be gone.
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


# The files


def test_the_namespace_comes_first_and_everything_is_in_it(rendered):
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
    places = [README.index(f"`{name}`") for name in order]
    assert places == sorted(places)


def test_every_file_belongs_to_a_kustomization():
    known = {
        f"{name}/{file}"
        for name, kustomization in KUSTOMIZATIONS.items()
        for file in ["kustomization.yml", *kustomization.get("resources", ())]
    }
    # Files for Prometheus and Grafana, and not for Kubernetes (tests/project/test_observability.py).
    assert {str(path.relative_to(MANIFESTS)) for path in MANIFESTS.rglob("*.yml") if path.parent.name != "observability"} <= known


def repeated(part: object, whole: object) -> list[object]:
    """The values of a patch that what it patches has already; lists go by the names in them, as in Kubernetes."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return [same for key in part.keys() & whole.keys() - {"kind", "name"} for same in repeated(part[key], whole[key])]
    if (
        isinstance(part, list)
        and isinstance(whole, list)
        and all(isinstance(item, dict) and "name" in item for item in part + whole)
    ):
        by_name = {item["name"]: item for item in whole}
        return [same for item in part if item["name"] in by_name for same in repeated(item, by_name[item["name"]])]
    return [part] if part == whole else []


# Who holds objects beside the base, and what these are for; all others only patch.
HOLDERS = {"jobs/redis": {"redis"}, "batch": {"batch-table", "batch-file"}, "batch/data": {"batch-file"}}


def test_only_base_sample_redis_and_batch_hold_objects_and_an_overlay_only_patches_that_repeat_nothing_of_them():
    base = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    for name, kustomization in KUSTOMIZATIONS.items():
        if name in HOLDERS:
            files = [resource for resource in kustomization["resources"] if not (MANIFESTS / name / resource).is_dir()]
            assert {component(yaml.safe_load((MANIFESTS / name / file).read_text())) for file in files} == HOLDERS[name]
        elif name != "base":
            assert all((MANIFESTS / name / item / "kustomization.yml").exists() for item in kustomization.get("resources", ()))
        for patch in kustomization.get("patches", ()):
            assert set(patch) <= {"target", "patch", "options"}
            assert repeated(yaml.safe_load(patch["patch"]), base) == []


def test_a_patch_that_is_a_copy_is_found():
    base = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())
    assert repeated({"spec": {"minReadySeconds": 5}}, base) == [5]
    server = {"name": "server", "image": "model-in-image-pattern:v1.0", "env": [{"name": "IRIS_DRAIN_SECONDS", "value": "10"}]}
    copied = repeated({"spec": {"template": {"spec": {"containers": [server]}}}}, base)
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
                # The image without redis-py and psycopg is the smaller one.
                settings = settings_of(container, objects) if is_ours(template) else Settings()
                needs_full = settings.redis_url != "" or settings.database_url.startswith("postgresql:")
                assert container["image"].endswith("-full") == needs_full
                assert container["image"].endswith("-edge") == bool(settings.edge_dir)
            assert {container["imagePullPolicy"] for container in containers(template)} == {"IfNotPresent"}


def test_every_component_is_on_or_off_in_an_overlay():
    # The list is empty where none but the one that is off could be in it.
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
            # The one field of a Deployment that can never be changed.
            assert selector(obj) == selector(after[name_of(obj)])


# Releases


def merged(*renders: list[Object]) -> list[Object]:
    """What a cluster holds after all of them were applied; they must agree where they name the same object."""
    held: dict[tuple[str, str], Object] = {}
    for item in (obj for objects in renders for obj in objects):
        assert held.setdefault(name_of(item), item) == item, f"{name_of(item)} is not the same in two overlays"
    return list(held.values())


@pytest.fixture
def releases(rendered) -> list[Object]:
    """All that may run at the same time."""
    return merged(*(rendered[name] for name in ("web_single", "release/canary", "release/blue", "release/green")))


def test_releases_that_run_together_disturb_each_other_in_nothing(releases):
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
def test_the_switch_changes_the_selector_of_one_service_and_nothing_else(rendered, releases, colour):
    namespace, switched = rendered[f"release/to_{colour}"]
    known = next(obj for obj in of_kind(releases, "Service") if name_of(obj) == name_of(switched))
    assert namespace == only(releases, "Namespace")
    assert {**switched, "spec": {**switched["spec"], "selector": None}} == {**known, "spec": {**known["spec"], "selector": None}}
    led = [obj["metadata"]["name"] for obj in of_kind(releases, "Deployment") if selects(switched, obj["spec"]["template"])]
    assert led == [f"model-in-image-deployment-{colour}"]


def test_blue_and_green_differ_in_colour_and_tag_alone(rendered):
    blue, green = (json.dumps(rendered[f"release/{colour}"]) for colour in ("blue", "green"))
    tags = [containers(pods(rendered[f"release/{colour}"])[0])[0]["image"] for colour in ("blue", "green")]
    assert tags[0] != tags[1]
    assert blue.replace("blue", "green").replace(*tags) == green


def test_the_clean_up_of_a_colour_finds_all_that_is_its_own(rendered):
    kinds = {instance: kinds for kinds, instance in re.findall(r"delete (\S+) -l \S+/instance=(\S+)", "\n".join(COMMANDS))}
    # The Service of web_single is the one that clients know, and stays.
    assert f"{kinds['main']},service" == kinds["blue"]
    short = {"hpa": "horizontalpodautoscaler", "pdb": "poddisruptionbudget"}
    for colour in ("blue", "green"):
        own = rendered[f"release/{colour}"][1:]
        assert {obj["kind"].lower() for obj in own} == {short.get(kind, kind) for kind in kinds["blue"].split(",")}
        assert {obj["metadata"]["labels"]["app.kubernetes.io/instance"] for obj in own} == {colour}


def test_the_canary_is_one_pod_of_another_image_and_changes_nothing_that_runs(rendered):
    (deployment,) = [item for item in rendered["release/canary"] if item not in rendered["web_single"]]
    stable = only(rendered["web_single"], "Deployment")
    assert name_of(deployment) == ("Deployment", "model-in-image-deployment-canary")
    assert deployment["spec"]["replicas"] == 1
    ours, theirs = (containers(obj["spec"]["template"])[0] for obj in (deployment, stable))
    assert ours["image"] != theirs["image"]
    assert {**ours, "image": None} == {**theirs, "image": None}


# Jobs


@pytest.fixture(params=JOBS)
def with_jobs(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """One overlay with jobs after the other, with the sample Redis and with one of somebody else."""
    return rendered[request.param]


@pytest.fixture(params=[name for name in JOBS if name not in OFF])
def with_redis(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """One with the sample Redis after the other."""
    return rendered[request.param]


def of_component(objects: list[Object], name: str) -> Object:
    """The pod template of the one Deployment of a component."""
    (first,) = [obj for obj in of_kind(objects, "Deployment") if component(obj) == name]
    return first["spec"]["template"]


def redis_of(objects: list[Object]) -> tuple[Object, dict[str, str]]:
    """The sample Redis, and its command line as settings."""
    (container,) = containers(of_component(objects, "redis"))
    words = container["args"]
    assert all(word.startswith("--") for word in words[::2])
    return container, {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}


def test_overlays_with_jobs_differ_in_the_role_of_the_server_alone(rendered):
    (one, first), (other, second) = (item for item in JOBS.items() if item[0] not in OFF)
    assert json.dumps(rendered[one]).replace(f'"{first}"', f'"{second}"') == json.dumps(rendered[other])


def test_workers_are_the_deployment_of_the_server_but_for_name_role_and_grace(with_jobs):
    server, worker = (of_component(with_jobs, name) for name in ("server", "worker"))
    result = {name: environment_of(containers(item)[0], with_jobs) for name, item in (("server", server), ("worker", worker))}
    differ = {key for key in result["server"] if result["server"][key] != result["worker"].get(key)}
    assert set(result["server"]) == set(result["worker"])
    assert differ == {"IRIS_ROLE", "IRIS_GRACE_SECONDS"}
    assert {**containers(server)[0], "env": None} == {**containers(worker)[0], "env": None}


def test_servers_and_workers_have_autoscalers_budgets_and_policies_of_their_own_and_clients_see_no_worker(with_jobs):
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"):
        assert {"server", "worker"} <= {component(obj) for obj in of_kind(with_jobs, kind)}
    targets = [obj["spec"]["scaleTargetRef"]["name"] for obj in of_kind(with_jobs, "HorizontalPodAutoscaler")]
    assert sorted(targets) == ["model-in-image-deployment", "model-in-image-deployment-worker"]
    for service in of_kind(with_jobs, "Service"):
        assert not selects(service, of_component(with_jobs, "worker"))


def test_the_address_of_redis_and_its_password_come_from_a_secret(with_jobs):
    for template in our_pods(with_jobs):
        (container,) = containers(template)
        (result,) = [item["valueFrom"]["secretKeyRef"] for item in container["env"] if item["name"] == "IRIS_REDIS_URL"]
        made = [obj["metadata"]["name"] for obj in of_kind(with_jobs, "Secret")]
        # A generated one has a hash in its name, so that a new password is a rollout.
        assert (result["name"] in made) if made else (result["name"] == "model-in-image-redis")


def test_the_address_in_the_sample_secret_is_that_of_the_sample_redis(with_redis):
    secret = only(with_redis, "Secret")
    service = next(obj for obj in of_kind(with_redis, "Service") if component(obj) == "redis")
    result = {key: value for (_, key), value in secrets(with_redis).items()}
    url = urlsplit(result["url"])
    assert set(result) == {"url", "password"}
    assert (url.scheme, url.hostname, url.port) == ("redis", service["metadata"]["name"], service["spec"]["ports"][0]["port"])
    assert unquote(url.password) == result["password"]
    # Nobody takes it for more than a sample.
    assert "sample" in result["password"] and "A SAMPLE" in (MANIFESTS / "jobs/redis/kustomization.yml").read_text()
    (container, words) = redis_of(with_redis)
    (variable,) = container["env"]
    assert words["requirepass"] == f"$({variable['name']})"
    assert variable["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "password"}


def test_redis_acknowledges_nothing_that_is_not_on_its_disk_and_evicts_nothing(with_redis):
    container, words = redis_of(with_redis)
    durable = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
    assert durable.items() <= words.items()
    promised = PATTERNS.partition("Redis must run with")[2]
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        assert f"`{name} {words[name]}`" in promised
    (template,) = [pod for pod in pods(with_redis) if not is_ours(pod)]
    (mount,) = container["volumeMounts"]
    (volume,) = template["spec"]["volumes"]
    claim = only(with_redis, "PersistentVolumeClaim")
    assert mount == {"name": volume["name"], "mountPath": words["dir"]}
    assert claims(template) == [claim["metadata"]["name"]]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    # Another user than the image's may write there.
    assert template["spec"]["securityContext"]["fsGroup"] == template["spec"]["securityContext"]["runAsGroup"]
    most = float(words["maxmemory"].removesuffix("mb")) * 2**20
    assert 2 * most <= limit(container, "memory") == request(container, "memory")
    # The file is rewritten when it is twice as large, and both are there then.
    assert 4 * most <= amount(claim["spec"]["resources"]["requests"]["storage"])
    assert int(words["port"]) == container["ports"][0]["containerPort"]


def test_redis_is_ready_when_it_answers_and_alive_while_it_reads_its_file(with_redis):
    container, _ = redis_of(with_redis)
    assert container["readinessProbe"]["exec"]["command"] == ["redis-cli", "-e", "ping"]
    assert container["livenessProbe"]["exec"]["command"] == ["redis-cli", "ping"]
    # redis-cli takes the password from there.
    assert [item["name"] for item in container["env"]] == ["REDISCLI_AUTH"]


def test_only_servers_and_workers_reach_redis_and_they_nobody_else(with_redis, rendered):
    policies = {component(obj): obj["spec"] for obj in of_kind(with_redis, "NetworkPolicy")}
    redis = of_component(with_redis, "redis")
    others = [template for name in ("release/blue", "release/green") for template in pods(rendered[name])]
    ((ingress,), names) = policies["redis"]["ingress"], ("server", "worker")

    def lets_in(template: Object) -> bool:
        return any(item["podSelector"]["matchLabels"].items() <= labels_of(template).items() for item in ingress["from"])

    assert all(set(item) == {"podSelector"} for item in ingress["from"])
    assert all(lets_in(of_component(with_redis, name)) for name in names)
    assert not any(map(lets_in, [redis, *others]))
    for name in names:
        dns, calls = policies[name]["egress"]
        assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
        (to,) = calls["to"]
        assert set(to) == {"podSelector"}
        assert calls["ports"] == ingress["ports"]
        reached = [
            pod for pod in [*pods(with_redis), *others] if to["podSelector"]["matchLabels"].items() <= labels_of(pod).items()
        ]
        assert reached == [redis]


def test_a_redis_of_somebody_else_takes_the_place_of_the_sample_and_leaves_nothing_of_it(rendered):
    for name, (overlay, element) in OFF.items():
        if element != "../jobs/managed_redis":
            continue
        kept = {name_of(element) for element in rendered[overlay] if component(element) != "redis"}
        assert {name_of(element) for element in rendered[name]} == kept
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


# Servers that ask others


@pytest.fixture(params=ASKING)
def asking(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """One overlay with servers that ask others after the other."""
    return rendered[request.param]


def asked_of(objects: list[Object]) -> list[Object]:
    """The Deployments that only servers ask."""
    return [deployment for deployment in our_deployments(objects) if is_asked(deployment)]


def server_of(objects: list[Object]) -> Object:
    """The Deployment behind the Service that clients know, which asks."""
    (first,) = [deployment for deployment in our_deployments(objects) if component(deployment) == "server"]
    return first


def places_of(deployment: Object) -> dict[str, str]:
    """Whom the server asks, by the component that it must be."""
    (container,) = containers(deployment["spec"]["template"])
    settings = settings_of(container)
    members = dict(pair.split("=", 1) for pair in settings.members.split(",") if pair)
    return {f"member-{name}": url for name, url in members.items()} | ({"pred": settings.pred_url} if settings.pred_url else {})


def test_there_is_a_deployment_of_its_own_for_each_role_and_each_member_whose_model_is_in_the_image(rendered):
    for name, (role, asked) in ASKING.items():
        result = {
            component(deployment): settings_of(*containers(deployment["spec"]["template"]))
            for deployment in our_deployments(rendered[name])
        }
        assert {which: settings.role for which, settings in result.items()} == {"server": role, **asked}
        for which, settings in result.items():
            assert settings.member == (which.removeprefix("member-") if settings.role == "member" else "")
        targets = [obj["spec"]["scaleTargetRef"]["name"] for obj in of_kind(rendered[name], "HorizontalPodAutoscaler")]
        assert len(set(targets)) == len(targets) == len(result)
    species = {f"member-{folder.name}" for folder in (MODEL / "members").iterdir()}
    assert set(ASKING["horizontal"][1]) == species


def test_each_address_is_a_headless_service_of_the_pods_that_are_meant_and_only_of_those_that_are_ready(asking):
    services = {obj["metadata"]["name"]: obj for obj in of_kind(asking, "Service")}
    places = places_of(server_of(asking))
    assert set(places) == {component(item) for item in asked_of(asking)}
    for which, url in places.items():
        service = services.pop(address_of(url).host)
        assert service["spec"]["clusterIP"] == "None" and not service["spec"].get("publishNotReadyAddresses")
        # Of a headless Service the port of the pod counts.
        assert [port["port"] for port in service["spec"]["ports"]] == [address_of(url).port] == [8000]
        assert [
            component(deployment) for deployment in our_deployments(asking) if selects(service, deployment["spec"]["template"])
        ] == [which]
    assert [component(item) for item in services.values()] == ["server"]


# How long the name servers of a cluster keep an address (kubeadm's `ttl 30`, and `cache 30`).
NAMED_SECONDS = 30


def test_who_is_behind_a_name_serves_until_nobody_has_its_address_any_more(asking):
    for deployment in asked_of(asking):
        (container,) = containers(deployment["spec"]["template"])
        assert settings_of(container).grace_seconds > NAMED_SECONDS + LOOKUP_SECONDS


def test_a_rollout_of_who_asks_has_the_time_for_that_of_whom_it_asks(asking):
    own = server_of(asking)
    (container,) = containers(own["spec"]["template"])
    start = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    needed = start + own["spec"]["minReadySeconds"] + NAMED_SECONDS + LOOKUP_SECONDS
    for deployment in asked_of(asking):
        assert own["spec"]["progressDeadlineSeconds"] > deployment["spec"]["progressDeadlineSeconds"] + needed


def lets(side: str, mine: Object, theirs: Object, objects: list[Object]) -> bool:
    """Whether the network policies of pods let them call others (egress) on their port, or be called by them (ingress)."""
    peers = "to" if side == "egress" else "from"
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy") if selects(policy, mine)]
    assert policies
    return any(
        {"protocol": "TCP", "port": 8000} in rule["ports"]
        and (peers not in rule or any(picks(peer, theirs) for peer in rule[peers]))
        for policy in policies
        for rule in policy.get(side, ())
    )


def test_servers_reach_whom_they_ask_and_nobody_else_reaches_anybody(rendered):
    # All that may be in the namespace besides, of which each side must keep out what the other might let through.
    besides = merged(rendered["release/blue"], rendered["release/green"], rendered["batch"])
    besides += [asynchronou for asynchronou in rendered["asynchronous"] if component(asynchronou) in ("worker", "redis")]
    for name in ASKING:
        objects = merged(rendered[name], besides)
        expected = {("server", "main", which) for which in ASKING[name][1]}
        pairs = [(pod, other) for pod in pods(objects) for other in pods(objects)]
        called, let_in = (
            {(component(item), labels_of(item)["app.kubernetes.io/instance"], component(other)) for item, other in found}
            for found in (
                [(item, other) for item, other in pairs if lets("egress", item, other, objects)],
                [(item, other) for item, other in pairs if is_asked(other) and lets("ingress", other, item, objects)],
            )
        )
        assert called == let_in == expected
        policy = next(obj for obj in of_kind(rendered[name], "NetworkPolicy") if component(obj) == "server")
        names, calls = policy["spec"]["egress"]
        assert names == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
        assert calls["ports"] == [{"protocol": "TCP", "port": 8000}]


@pytest.fixture(scope="session")
def next_release(rendered, tmp_path_factory) -> dict[str, list[Object]]:
    """The overlays after the command of the README for a release with other models."""
    (command,) = [line for line in COMMANDS if line.startswith("sed ")]
    copy = tmp_path_factory.mktemp("next")
    shutil.copytree(MANIFESTS, copy / "manifests")
    subprocess.run(["sh", "-c", command], cwd=copy, check=True, timeout=60)
    return {name: kustomize(copy / "manifests" / name) for name in ASKING}


@pytest.mark.parametrize("name", ASKING)
def test_a_release_with_other_models_stands_beside_the_old_one_until_who_asks_has_gone_over(name, rendered, next_release):
    before, after = ({name_of(obj): obj for obj in objects} for objects in (rendered[name], next_release[name]))
    # Of what is there one thing alone becomes another: the Deployment that asks, and of that the image and whom it asks.
    changed = {which for which in before.keys() & after.keys() if before[which] != after[which]}
    assert changed == {("Deployment", "model-in-image-deployment")}
    old, new = (server_of(list(objects.values())) for objects in (before, after))
    assert places_of(old).keys() == places_of(new).keys()
    assert not set(places_of(old).values()) & set(places_of(new).values())
    images = [containers(obj["spec"]["template"])[0]["image"] for obj in (old, new)]
    assert images[0] != images[1]
    assert {containers(obj["spec"]["template"])[0]["image"] for obj in asked_of(list(after.values()))} == {images[1]}
    assert json.dumps(old).replace(images[0], images[1]).replace("models-1", "models-2") == json.dumps(new)
    # While both are there, each name leads to its own pods, and servers reach both.
    both = list({**before, **after}.values())
    test_every_deployment_selects_its_own_pods_and_has_one_disruption_budget_and_a_network_policy(both)
    for service in of_kind(both, "Service"):
        assert len([obj for obj in our_deployments(both) if selects(service, obj["spec"]["template"])]) == 1
    assert len(asked_of(both)) == 2 * len(ASKING[name][1])
    for deployment in asked_of(both):
        ends = new["spec"]["template"], deployment["spec"]["template"]
        assert lets("egress", *ends, both) and lets("ingress", *reversed(ends), both)


@pytest.mark.parametrize("name", ASKING)
def test_the_clean_up_of_old_models_finds_all_that_is_theirs_and_nothing_else(name, rendered):
    (kinds,) = re.findall(r"delete (\S+) -l app.kubernetes.io/instance=models-1$", "\n".join(COMMANDS), re.MULTILINE)
    own = [obj for obj in rendered[name] if obj["metadata"]["labels"].get("app.kubernetes.io/instance") == "models-1"]
    short = {"hpa": "horizontalpodautoscaler", "pdb": "poddisruptionbudget"}
    assert {obj["kind"].lower() for obj in own} == {short.get(kind, kind) for kind in kinds.split(",")}
    assert [obj for obj in rendered[name] if obj not in own and "-models-1" in obj["metadata"]["name"]] == []
    assert all(is_asked(item) for item in own)


# Whole tables and whole files

DAY_SECONDS = 86400


@pytest.fixture(params=BATCH)
def with_batch(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """The overlay as it is, and with each component that is off."""
    return rendered[request.param]


def arguments(container: Object, **of_pod: str) -> list[str]:
    """As the command gets them: Kubernetes replaces $(NAME) by variables of the container, and by no others."""
    result = {item["name"]: environment_value(item, {}) for item in container["env"]} | of_pod
    return [re.sub(r"\$\((\w+)\)", lambda found: result[found[1]], word) for word in container["args"]]


def batch_of(objects: list[Object], kind: str) -> tuple[Object, Object, Object]:
    """How Jobs of the one of that kind run, their pods' spec, and the container."""
    item = only(objects, kind)
    (container,) = containers(template_of(item))
    (job,) = jobs_of([item])
    return job["spec"], template_of(item)["spec"], container


def parsed(words: list[str]) -> dict[str, Any]:
    return vars(parser(words).parse_args(words))


def shard_of(container: Object, index: int) -> Options:
    """What the pod with that index is asked for; an argument that is wrong raises."""
    return parse_file_options(parsed(arguments(container, JOB_COMPLETION_INDEX=str(index))))


def test_the_cron_job_runs_the_command_on_a_table_of_the_database_in_the_secret(with_batch):
    _, _, container = batch_of(with_batch, "CronJob")
    given = parsed(arguments(container))
    assert given["command"] == "batch" and given["table"] and not given["source"]
    (result,) = container["env"]
    assert result["valueFrom"]["secretKeyRef"] == {"name": "model-in-image-database", "key": "url"}
    assert "create secret generic model-in-image-database --from-file=url=" in README


def test_the_authority_of_the_database_is_a_file_where_the_address_says_if_the_secret_has_one(with_batch):
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
    # Lines of shards are told apart by nothing else.
    assert all(shard.keep for shard in shards)
    (result,) = container["env"]
    field = result["valueFrom"]["fieldRef"]["fieldPath"]
    assert (result["name"], field) == ("JOB_COMPLETION_INDEX", "metadata.annotations['batch.kubernetes.io/job-completion-index']")


def test_all_shards_have_a_disk_on_which_their_user_can_write(with_batch):
    job, pod, container = batch_of(with_batch, "Job")
    claim = only(with_batch, "PersistentVolumeClaim")
    (mount,) = container["volumeMounts"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert claims({"spec": pod}) == [claim["metadata"]["name"]]
    assert not mount.get("readOnly")
    for index in range(job["completions"]):
        shard = shard_of(container, index)
        assert {Path(path).parent for path in (shard.source.path, shard.target.path, shard.errors.path)} == {
            Path(mount["mountPath"])
        }
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    # A disk of one node has one pod at a time.
    assert claim["spec"]["accessModes"] == (["ReadWriteMany"] if job["parallelism"] > 1 else ["ReadWriteOnce"])
    assert job["parallelism"] in (1, job["completions"])


def test_the_file_is_brought_to_the_disk_of_the_shards_by_their_user_before_they_begin(rendered):
    job, pod, container = batch_of(rendered["batch"], "Job")
    assert job["suspend"] is True
    assert """'{"spec": {"suspend": false}}'""" in README
    bringer = only(rendered["batch/data"], "Pod")
    (theirs,) = containers(bringer)
    assert bringer["spec"]["securityContext"] == pod["securityContext"]
    assert (bringer["spec"]["volumes"], theirs["volumeMounts"]) == (pod["volumes"], container["volumeMounts"])
    assert f"cp in.csv {bringer['metadata']['name']}:{shard_of(container, 0).source.path}" in README
    assert f"cp {bringer['metadata']['name']}:{shard_of(container, 0).target.path} " in README


def test_each_way_in_which_a_run_ends_is_tried_again_or_not_as_the_readme_says(with_batch):
    rows = re.findall(r"^\| (\d) \| (.*) \|$", PATTERNS, re.MULTILINE)
    assert {int(status) for status, _ in rows} == set(ExitStatus)
    again = {int(status) for status, what in rows if what.endswith("the same command resumes the run")}
    for obj in of_kind(with_batch, "CronJob", "Job"):
        job, pod, container = batch_of(with_batch, obj["kind"])
        # The first rule that fits counts.
        fails, disrupted, counts = job["podFailurePolicy"]["rules"]
        assert fails["action"] == "FailJob" and set(fails["onExitCodes"]["values"]) == set(ExitStatus) - again - {ExitStatus.GOOD}
        assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert counts["action"] == "Count" and set(counts["onExitCodes"]["values"]) == again
        for rule in (fails, counts):
            assert (rule["onExitCodes"]["operator"], rule["onExitCodes"]["containerName"]) == ("In", container["name"])
        # Only so does the Job look at them, and no two pods are at the same work.
        assert (pod["restartPolicy"], job["podReplacementPolicy"]) == ("Never", "Failed")
        indexed = job.get("completionMode") == "Indexed"
        assert [name for name in ("backoffLimit", "backoffLimitPerIndex") if name in job] == [
            "backoffLimitPerIndex" if indexed else "backoffLimit"
        ]


def test_a_night_is_over_before_the_next_one_and_its_retries_before_its_deadline(with_batch):
    cron = only(with_batch, "CronJob")["spec"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", cron["schedule"])
    assert (cron["timeZone"], cron["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")
    for obj in of_kind(with_batch, "CronJob", "Job"):
        job, pod, _ = batch_of(with_batch, obj["kind"])
        latest = cron["startingDeadlineSeconds"] + job["activeDeadlineSeconds"] + pod["terminationGracePeriodSeconds"]
        assert latest < DAY_SECONDS
        pauses = [min(10 * 2**i, 600) for i in range(job.get("backoffLimit", job.get("backoffLimitPerIndex")))]
        assert sum(pauses) < job["activeDeadlineSeconds"]
        # The history can be as long as it is told to be.
        assert (
            max(cron["successfulJobsHistoryLimit"], cron["failedJobsHistoryLimit"]) * DAY_SECONDS < job["ttlSecondsAfterFinished"]
        )
    # Pods that share a table: each must end well, so that the last one has seen what others left over.
    assert cron["jobTemplate"]["spec"]["completions"] == cron["jobTemplate"]["spec"]["parallelism"]


def test_a_batch_has_the_cpu_of_a_server_and_no_more_memory_and_nothing_to_listen_with(with_batch, rendered):
    (server,) = containers(pods(rendered["base"])[0])
    for template in our_pods(with_batch):
        (container,) = containers(template)
        assert request(container, "cpu") == request(server, "cpu") and limit(container, "cpu") == limit(server, "cpu")
        assert request(container, "memory") == limit(container, "memory") <= limit(server, "memory")
        assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & set(container)
    assert not of_kind(with_batch, "Service")


def test_the_pods_of_a_table_call_a_database_and_those_of_a_file_nobody_and_nobody_calls_them(with_batch):
    policies = {component(obj): obj["spec"] for obj in of_kind(with_batch, "NetworkPolicy")}
    assert set(policies) == {"batch-table", "batch-file"}
    assert not any(policy.get("ingress") for policy in policies.values())
    (rule,) = policies["batch-table"]["egress"]
    assert set(rule) == {"ports"}
    (container,) = containers(template_of(only(with_batch, "CronJob")))
    port = urlsplit(settings_of(container).database_url).port
    assert [(item["protocol"], item["port"]) for item in rule["ports"]] == [("UDP", 53), ("TCP", 53), ("TCP", port)]


def test_batches_and_the_pods_of_any_other_overlay_disturb_each_other_in_nothing(rendered):
    batches = rendered["batch"][1:] + rendered["batch/data"][1:]
    for name in set(OVERLAYS) - {"batch", "batch/data"}:
        others = rendered[name][1:]
        assert not {name_of(batch) for batch in batches} & {name_of(other) for other in others}
        for ones, templates in ((others, pods(batches)), (batches, pods(others))):
            for obj in of_kind(ones, "Service", "PodDisruptionBudget", "NetworkPolicy"):
                assert not [template for template in templates if selects(obj, template)]


# Another model


def loaded(objects: list[Object]) -> tuple[Object, Object, dict[str, Object]]:
    """The initContainer, the server and the volumes."""
    (template,) = pods(objects)
    (load,), (server,) = containers(template, "initContainers"), containers(template, "containers")
    return load, server, {volume["name"]: volume for volume in template["spec"]["volumes"]}


def mounts(container: Object) -> dict[str, Object]:
    return {volumemount["mountPath"]: volumemount for volumemount in container["volumeMounts"]}


def test_the_seal_in_the_manifest_is_that_of_the_model_beside_it(rendered):
    content = (MANIFESTS / "model_load/model/golden.json").read_bytes()
    load, _, _ = loaded(rendered["model_load"])
    assert load["args"][-2:] == ["--seal", f"sha256:{hashlib.sha256(content).hexdigest()}"]
    assert load["args"][-1] in (MANIFESTS / "model_load/load/kustomization.yml").read_text()


def test_the_model_beside_the_manifest_is_another_and_answers_its_golden_rows():
    model, golden = load_model(MANIFESTS / "model_load/model")
    assert self_test(model, golden.cases, golden.tolerance)


def test_the_config_map_holds_every_file_that_the_seal_covers(rendered):
    held = only(rendered["model_load"], "ConfigMap")
    _, golden = load_model(MANIFESTS / "model_load/model")
    assert {*held["data"], *held["binaryData"]} == {"golden.json", *golden.files}
    assert {path.name for path in (MANIFESTS / "model_load/model").iterdir()} == {"golden.json", *golden.files}
    _, _, volumes = loaded(rendered["model_load"])
    assert volumes["source"]["configMap"]["name"] == held["metadata"]["name"] != "model-in-image-model"


@pytest.mark.parametrize("name", ["model_load", "model_load/fallback_to_image", "model_load/over_http"])
def test_the_server_reads_what_load_wrote_and_cannot_write_there(rendered, name):
    load, server, volumes = loaded(rendered[name])
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
    # Where --or-baked finds the model of the image.
    assert settings_of(load).model_dir == IMAGE_ENV["IRIS_MODEL_DIR"] != folder


def test_the_model_of_the_image_is_the_way_out_only_where_that_is_told(rendered):
    result = {name: "--or-baked" in loaded(rendered[name])[0]["args"] for name in RENDERS if name.startswith("model_load")}
    assert result == {"model_load": False, "model_load/fallback_to_image": True, "model_load/over_http": False}


def test_only_over_http_does_the_model_come_from_a_url(rendered):
    sources = {name: loaded(rendered[name])[0]["args"][1] for name in RENDERS if name.startswith("model_load")}
    assert {name: source.startswith("http://") for name, source in sources.items()} == {
        name: name == "model_load/over_http" for name in sources
    }


# The documents


def test_the_readme_names_every_directory_and_only_those_that_exist():
    table = re.findall(r"`manifests/([\w/]+)`", "\n".join(re.findall(r"^\|.*\|$", README, re.MULTILINE)))
    assert sorted(table) == sorted(KUSTOMIZATIONS)
    for name in re.findall(r"manifests/([\w/.]*\w)", README):
        assert (MANIFESTS / name).exists(), name


def test_every_overlay_is_applied_by_a_command_of_the_readme_and_every_command_names_what_exists(rendered):
    applied = {found[1] for line in COMMANDS if (found := re.match(r"kubectl apply -k manifests/(\S+)$", line))}
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
    images = {
        container["image"] for objects in rendered.values() for template in pods(objects) for container in containers(template)
    }
    assert {line.split()[-1] for line in COMMANDS if line.startswith("minikube image load ")} <= images
    (port,) = only(rendered["base"], "Service")["spec"]["ports"]
    assert re.findall(r"\$\(minikube ip\):(\d+)/", "\n".join(COMMANDS)) == [str(port["nodePort"])]
    assert {line for line in COMMANDS if "kubectl" in line and " -n " not in line} == {
        line for line in COMMANDS if line.startswith("kubectl apply -k manifests/")
    }


def test_every_pattern_has_a_drawing():
    assert [title for title in re.split(r"^#+ ", README, flags=re.MULTILINE)[1:] if "```mermaid\n" not in title] == []
    assert {name for overlays, _ in DRAWINGS for name in overlays} == set(OVERLAYS) - {"base"}


# Each drawing, with the overlays that its title names.
DRAWINGS = [
    (re.findall(r"manifests/([\w/]+)", title), lines)
    for title, lines in re.findall(
        r"^```mermaid\n%%[^\n]*\nflowchart (?:LR|TB)\n  accTitle: ([^\n]*)\n(.*?)^```$", README, re.M | re.S
    )
]
DRAWN = ("Service", "Deployment", "CronJob", "Job", "Pod", "PersistentVolumeClaim")
ARROW = r" (?:-->|-\.->)(?:\|\"[^|]*\"\|)? "


def label(obj: Object, objects: list[Object]) -> list[str]:
    """What a drawing says of an object: its kind, its name, and of a Deployment the pods too."""
    kind, name = name_of(obj)
    if kind != "Deployment":
        return [kind, name]
    least = least_pods(obj, objects)
    most = [
        hpa["spec"]["maxReplicas"]
        for hpa in of_kind(objects, "HorizontalPodAutoscaler")
        if hpa["spec"]["scaleTargetRef"]["name"] == name
    ]
    return [kind, name, f"{least} to {most[0]} pods" if most else f"{least} pod{'s' * (least > 1)}"]


@pytest.mark.parametrize(("overlays", "lines"), DRAWINGS, ids=[overlays[0] for overlays, _ in DRAWINGS])
def test_a_drawing_shows_exactly_what_its_overlays_have_and_where_their_services_lead(overlays, lines, rendered):
    objects = {
        name_of(obj): obj for name in overlays for obj in rendered[name] if obj["kind"] in (*DRAWN, "HorizontalPodAutoscaler")
    }
    named = {node: text.split("<br/>") for node, text in re.findall(rf'(\w+)[\[({{]+"((?:{"|".join(DRAWN)})<br/>[^"]*)"', lines)}
    here = list(objects.values())
    result = sorted(label(obj, here) for obj in of_kind(here, *DRAWN))
    assert sorted([text[0], text[1], *text[-1:]] if text[0] == "Deployment" else text[:2] for text in named.values()) == result
    for deployment in our_deployments(here):
        (role,) = [text[2:-1] for text in named.values() if text[:2] == ["Deployment", deployment["metadata"]["name"]]]
        (container,) = containers(deployment["spec"]["template"], "containers")
        said = {f"role {settings_of(container, rendered[overlays[0]]).role}", container["image"].partition(":")[2]}
        assert len(role) == 1 and role[0] in said
    ends = [[re.match(r"\w+", part)[0] for part in re.split(ARROW, line.strip())] for line in lines.splitlines()]
    arrows = {pair for line in ends for pair in pairwise(line)}
    # The switch of blue and green leads to the one in one overlay and to the other in the other.
    services = [obj for name in overlays for obj in of_kind(rendered[name], "Service")]
    leads = {
        (service["metadata"]["name"], obj["metadata"]["name"])
        for service in services
        for obj in of_kind(here, "Deployment")
        if selects(service, obj["spec"]["template"])
    }
    assert {(named[job_id][1], named[other][1]) for job_id, other in arrows if named.get(job_id, "?")[0] == "Service"} == leads
