"""compose.yaml: compared with the manifests, rendered by podman-compose, and run with the services of CI."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest
import yaml
from doc_examples import commands_for
from http_clients import ROW, HttpResponse, fetch, http_request, wait_until
from kustomize_overlays import (
    DOCKERFILE,
    IMAGE_ENV,
    MANIFESTS,
    Object,
    containers,
    environment_of,
    kustomize,
    our_servers,
    pods,
)
from optional_programs import require_package, require_program
from project import ROOT
from project_images import FULL, IMAGE, build_image
from server_process import free_ports

from iris_wsgi.settings import read_settings

TEXT = (ROOT / "compose.yaml").read_text()
DOCUMENT = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
SAMPLE_PASSWORD = "sample-password-change-me"
# Services of each profile. web has no profile, and always runs.
PROFILES = {
    "prep-pred": {"prep", "pred"},
    "horizontal": {"gateway", "member-setosa", "member-versicolor", "member-virginica"},
    "jobs": {"jobs", "worker", "redis"},
    "data-cache": {"items", "postgres"},
    "observability": {"prometheus", "grafana"},
}
# Overlay and component of the pods with the same task.
PODS = {
    "web": ("web_single", "server"),
    "prep": ("prep_pred", "server"),
    "pred": ("prep_pred", "pred"),
    "gateway": ("horizontal", "server"),
    "member-setosa": ("horizontal", "member-setosa"),
    "member-versicolor": ("horizontal", "member-versicolor"),
    "member-virginica": ("horizontal", "member-virginica"),
    "jobs": ("asynchronous", "server"),
    "worker": ("asynchronous", "worker"),
    "items": ("data_cache", "server"),
}
# Names of Services in a cluster, and the names here. The names of members and of pred end with their component there too.
HOSTS = {"model-in-image-service-models-1-pred": "pred", "model-in-image-redis": "redis"}
HOSTS |= {f"model-in-image-service-models-1-{name}": f"member-{name}" for name in ("setosa", "versicolor", "virginica")}
# Variables of pods that have no use here, with the reason.
LEFT_OUT = {"IRIS_GRACE_SECONDS": "no Service has to remove a container that ends"}
# Grafana is not in Debian, so CI has no image of it. Its files are compared with those that it loads.
RUN = sorted({"web"}.union(*PROFILES.values()) - {"grafana"})


def interpolated(value: object) -> str:
    """Replaces each variable by its default, or by its value in the environment of this test."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", str(value))


def environment(service: str) -> dict[str, str]:
    return {name: interpolated(value) for name, value in SERVICES[service].get("environment", {}).items()}


def published(service: str) -> dict[str, str]:
    """Returns the parts of the only published port: address, host port, and container port, with their defaults."""
    (port,) = SERVICES[service]["ports"]
    return dict(zip(("address", "host", "container"), interpolated(port).split(":"), strict=True))


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    require_program("kubectl")
    return {name: kustomize(MANIFESTS / name) for name in {overlay for overlay, _ in PODS.values()}}


def pod_of(service: str, overlays: dict[str, list[Object]]) -> Object:
    """Returns the container in the pod template of the same task."""
    overlay, component = PODS[service]
    (template,) = (
        each for each in our_servers(overlays[overlay]) if each["metadata"]["labels"]["app.kubernetes.io/component"] == component
    )
    (container,) = containers(template)
    return container


def assert_same_resources(service: dict[str, Any], container: Object) -> None:
    limits = container["resources"]["limits"]
    assert service["mem_limit"] == service["memswap_limit"] == limits["memory"].replace("Mi", "m")
    assert str(service["cpus"]) == limits["cpu"]


# The file


@pytest.mark.parametrize("name", PODS)
def test_a_server_has_the_settings_and_limits_of_its_pod(overlays, name):
    service, container = SERVICES[name], pod_of(name, overlays)
    expected = {key: value for key, value in environment_of(container, overlays[PODS[name][0]]).items() if key not in LEFT_OUT}
    for cluster, here in HOSTS.items():
        expected = {key: re.sub(rf"\b{cluster}:", f"{here}:", value) for key, value in expected.items()}
    found = {**IMAGE_ENV, **environment(name)}
    if name == "items":
        # The database of the overlay is an external one.
        assert expected.pop("IRIS_DATABASE_URL").split(":")[0] == found.pop("IRIS_DATABASE_URL").split(":")[0]
    assert found == expected
    assert read_settings(found, {}).port == int(published(name)["container"] if "ports" in service else 8000)
    assert service["image"] == container["image"]
    assert_same_resources(service, container)


def test_redis_has_the_command_and_limits_of_its_pod(overlays):
    (container,) = (
        container
        for template in pods(overlays["asynchronous"])
        for container in containers(template)
        if container["name"] == "redis"
    )
    words = [SAMPLE_PASSWORD if word == "$(REDISCLI_AUTH)" else word for word in container["args"]]
    redis = SERVICES["redis"]
    assert [interpolated(word) for word in redis["command"]] == ["redis-server", *words]
    assert redis["image"] == f"docker.io/library/{container['image']}"
    assert redis["healthcheck"]["test"] == ["CMD", *container["readinessProbe"]["exec"]["command"]]
    assert_same_resources(redis, container)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_as_hardened_as_a_pod(name):
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in ("root", "0") and not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
    assert (service["user"] == "65532:65532") == (name in PODS)
    assert service["pids_limit"] and service["mem_limit"] and service["cpus"]
    assert service["healthcheck"]["test"][0] == "CMD"


def test_each_service_belongs_to_its_profile_and_waits_for_healthy_services_of_that_profile():
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"web"}
    for name, service in SERVICES.items():
        assert service.get("profiles", []) == [profile for profile, names in PROFILES.items() if name in names]
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and SERVICES[other]["profiles"] == service["profiles"]
    callers = {"prep": {"pred"}, "gateway": PROFILES["horizontal"] - {"gateway"}, "grafana": {"prometheus"}}
    callers |= {"jobs": {"redis"}, "worker": {"redis"}, "items": {"postgres"}}
    assert {name: {*service["depends_on"]} for name, service in SERVICES.items() if "depends_on" in service} == callers


def test_the_health_check_of_a_server_is_that_of_the_image():
    words = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1]
    for name in PODS:
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", *json.loads(words)]


def test_one_service_of_each_profile_builds_the_image_that_the_others_use():
    for image, target in ((IMAGE, "default"), (FULL, "full")):
        users = {name for name, service in SERVICES.items() if service["image"] == image}
        builders = {name for name in users if "build" in SERVICES[name]}
        assert builders == ({"web"} if target == "default" else {"jobs", "items"})
        for name in users:
            service = SERVICES[name]
            if name in builders:
                assert service["build"] == {"context": ".", "target": target} and "pull_policy" not in service
            else:
                assert service["pull_policy"] == "never"
        assert re.search(rf"^FROM \w+ AS {target}$", DOCKERFILE, re.MULTILINE)


def test_ports_are_published_to_this_machine_only_and_differ():
    ports = {name: published(name) for name, service in SERVICES.items() if "ports" in service}
    assert ports.keys() == {"web", "prep", "gateway", "jobs", "items", "prometheus", "grafana"}
    assert {port["address"] for port in ports.values()} == {"127.0.0.1"}
    assert ports["web"]["host"] == "8000" and len({port["host"] for port in ports.values()}) == len(ports)
    page = (ROOT / "docs/compose.md").read_text()
    for name, port in ports.items():
        assert f"| `{name}` | {port['host']} | `{name.upper()}_PORT` |" in page


def test_every_password_is_the_named_sample_of_the_manifests_and_can_be_replaced():
    assert (MANIFESTS / "jobs/redis/secret/password.txt").read_text() == SAMPLE_PASSWORD
    variables = dict(re.findall(r"\$\{(\w+_PASSWORD):-([^}]+)\}", TEXT))
    assert variables == dict.fromkeys(("REDIS_PASSWORD", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"), SAMPLE_PASSWORD)
    # No sample is outside of such a variable.
    assert TEXT.count(SAMPLE_PASSWORD) == len(re.findall(rf"_PASSWORD:-{SAMPLE_PASSWORD}\}}", TEXT))
    for variable in variables:
        assert f"`{variable}`" in (ROOT / "docs/compose.md").read_text()


# Prometheus and Grafana


def mounts(service: str) -> dict[str, str]:
    """Returns the files of this repository that a service reads, by their path in the container."""
    pairs = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {inside: source for source, inside, *flags in pairs if source.startswith("./") and flags == ["ro,z"]}


def test_prometheus_loads_the_rules_and_finds_every_server():
    require_program("promtool")
    files = mounts("prometheus")
    assert f"--config.file={next(iter(files))}" in SERVICES["prometheus"]["command"]
    path = ROOT / files["/etc/prometheus/prometheus.yml"]
    subprocess.run(["promtool", "check", "config", "--syntax-only", path], check=True, capture_output=True)
    config = yaml.safe_load(path.read_text())
    assert [files[name] for name in config["rule_files"]] == ["./manifests/observability/rules.yml"]
    (job,) = config["scrape_configs"]
    (cluster,) = yaml.safe_load((MANIFESTS / "observability/scrape.yml").read_text())["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]
    assert job["job_name"] == cluster["job_name"] and sorted(lookup["names"]) == sorted(PODS)
    assert {rule.get("target_label") for rule in job["relabel_configs"]} == {"namespace", "component", "instance"}


def test_grafana_loads_the_dashboard_with_the_prometheus_of_the_same_file():
    files = mounts("grafana")
    assert all((ROOT / source).is_file() for source in files.values())
    provisioning = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load((ROOT / files[f"{provisioning}/datasources/iris_wsgi.yml"]).read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    (provider,) = yaml.safe_load((ROOT / files[f"{provisioning}/dashboards/iris_wsgi.yml"]).read_text())["providers"]
    dashboard = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboard.startswith(f"{provider['options']['path']}/")
    assert files[dashboard] == "./manifests/observability/dashboard.json"


# podman-compose


def compose(*words: str, profiles: Any = tuple(PROFILES)) -> list[str]:
    """Returns a command of podman-compose with these profiles."""
    require_program("podman")
    require_package("podman_compose", "test")
    options = [word for profile in profiles for word in ("--profile", profile)]
    return [sys.executable, "-m", "podman_compose", "--file", str(ROOT / "compose.yaml"), *options, *words]


@pytest.mark.long
@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_podman_compose_renders_a_profile(profile):
    command = compose("config", profiles=[profile] if profile else [])
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rendered = yaml.safe_load(result.stdout)["services"]
    assert rendered.keys() == {"web"} | PROFILES.get(profile, set())
    for name, service in rendered.items():
        assert "${" not in json.dumps(service)
        assert service.get("environment", {}) == environment(name)


def remove_rest(project: str) -> None:
    """Removes the parts of a project that are not containers. podman-compose makes some of them even for a plan."""
    volumes = (f"{project}_{volume}" for volume in DOCUMENT["volumes"])
    for words in (("pod", f"pod_{project}"), ("volume", *volumes), ("network", f"{project}_default")):
        subprocess.run(["podman", words[0], "rm", "--force", *words[1:]], capture_output=True)


@pytest.mark.long
@pytest.mark.parametrize("command", [line for fence in commands_for("compose") for line in fence.text.splitlines()])
def test_podman_compose_understands_a_command_of_the_documents(command):
    words = command.removeprefix("docker compose ").split()
    project = f"iris-wsgi-plan-{os.getpid()}"
    try:
        plan = compose("--project-name", project, "--verbose", "--dry-run", *words, profiles=())
        result = subprocess.run(plan, capture_output=True, text=True)
    finally:
        remove_rest(project)
    assert result.returncode == 0, result.stderr
    names = {"web"}.union(*(PROFILES[profile] for profile in PROFILES if f"--profile {profile}" in command))
    assert set(re.findall(rf"podman create --name={project}_(\S+)_1 ", result.stderr)) == names


class Project:
    """Services that run under podman-compose, on free ports of this machine."""

    def __init__(self) -> None:
        self.name = f"iris-wsgi-test-{os.getpid()}"
        names = [name for name in RUN if "ports" in SERVICES[name]]
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.environ = os.environ | {f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()}

    def compose(self, *words: str) -> subprocess.Popen:
        command = compose("--project-name", self.name, *words)
        return subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finished(self, *words: str) -> str:
        process = self.compose(*words)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def podman(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["podman", *words], capture_output=True, text=True)

    def containers(self) -> list[str]:
        label = f"label=io.podman.compose.project={self.name}"
        return self.podman("ps", "--all", "--filter", label, "--format", "{{.Names}}").stdout.split()

    def is_healthy(self, container: str) -> bool:
        """Runs the health check of a container, because no systemd does it here."""
        return self.podman("healthcheck", "run", container).returncode == 0

    def start(self) -> None:
        """Starts the services. Some of them start when others are healthy."""
        process = self.compose("up", "--detach", *RUN)
        healthy: set[str] = set()

        def all_started_and_healthy() -> bool:
            ended = process.poll() is not None
            found = self.containers()
            healthy.update(name for name in found if name not in healthy and self.is_healthy(name))
            return ended and healthy.issuperset(found)

        wait_until(all_started_and_healthy, f"all services of {self.name} are healthy")
        assert process.returncode == 0, process.stdout.read()
        process.stdout.close()

    def remove(self) -> None:
        """Removes everything at once. `podman-compose down` ends one container after the other."""
        self.podman("rm", "--force", "--time", "0", "--volumes", *self.containers())
        remove_rest(self.name)

    def request(self, service: str, method: str, path: str, document: object = None, *headers: str) -> HttpResponse:
        server = SimpleNamespace(host="127.0.0.1", port=self.ports[service])
        return fetch(server, http_request(method, path, document, *headers))

    def finished_job(self) -> dict[str, Any]:
        """Submits a job and returns its last state. Like each client, it repeats a request after a 503."""
        key = f"Idempotency-Key: {uuid4().hex}"
        answers: list[HttpResponse] = []

        def answer(status: int, *request: Any) -> bool:
            answers.append(self.request("jobs", *request))
            assert answers[-1].status in (status, 503), answers[-1].body
            return answers[-1].status == status

        wait_until(lambda: answer(202, "POST", "/jobs", {"data": [ROW]}, key), "the job is submitted")
        href = answers[-1].json()["href"]
        wait_until(
            lambda: (
                answer(200, "GET", href, None, "Prefer: wait=20") and answers[-1].json()["status"] not in ("queued", "running")
            ),
            "a worker finishes the job",
        )
        return answers[-1].json()


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """Every profile at once. On a laptop, the first run builds the image, and gets the other images from their registry."""
    compose()
    if os.environ.get("CI") != "true" and "test_compose.py" not in " ".join(map(str, request.config.invocation_params.args)):
        pytest.skip("run it by its name: bin/test tests/project/test_compose.py")
    build_image(IMAGE, "default", unless_built=True)
    build_image(FULL, "full", unless_built=True)
    project = Project()
    try:
        project.start()
        yield project
    finally:
        project.remove()


@pytest.mark.long
def test_all_containers_are_hardened_and_each_server_runs_with_its_limits(project):
    names = project.containers()
    # Two workers share the jobs.
    assert len(names) == len(RUN) + 1
    text = (
        '{"name": {{json .Name}}, "host": {{json .HostConfig}}, "caps": {{json .EffectiveCaps}}, "user": {{json .Config.User}}}'
    )
    for line in project.podman("inspect", "--format", text, *names).stdout.splitlines():
        found = json.loads(line)
        service = SERVICES[found["name"].removeprefix(f"{project.name}_")[:-2]]
        host = found["host"]
        assert host["ReadonlyRootfs"] is True and not found["caps"] and "no-new-privileges" in host["SecurityOpt"]
        assert found["user"] == service["user"] and host["NanoCpus"] == service["cpus"] * 10**9
        assert host["Memory"] == int(service["mem_limit"].removesuffix("m")) << 20


@pytest.mark.long
def test_the_default_service_predicts(project):
    assert project.request("web", "POST", "/predict/label", {"data": [ROW]}).json() == {"prediction": "setosa"}


@pytest.mark.long
def test_prep_asks_pred(project):
    assert project.request("prep", "POST", "/predict/label", {"data": [ROW]}).json() == {"prediction": "setosa"}


@pytest.mark.long
def test_the_gateway_combines_the_votes_of_three_members(project):
    answer = project.request("gateway", "POST", "/ensemble/predict", {"data": [ROW]}).json()
    assert answer["status"] == "complete" and sorted(answer["members"]) == ["setosa", "versicolor", "virginica"]
    assert answer["prediction"]["label"] == "setosa"


@pytest.mark.long
def test_workers_finish_jobs_also_after_redis_was_killed(project):
    assert project.finished_job()["result"]["labels"] == ["setosa"]
    redis = f"{project.name}_redis_1"
    # The engine starts it again. After `podman kill` it would not.
    os.kill(int(project.podman("inspect", "--format", "{{.State.Pid}}", redis).stdout), signal.SIGKILL)
    wait_until(lambda: project.is_healthy(redis), "redis runs again")
    wait_until(lambda: project.request("jobs", "GET", "/jobs").status == 200, "the server reaches redis")
    assert project.finished_job()["result"]["labels"] == ["setosa"]


@pytest.mark.long
def test_items_are_in_the_database_and_not_in_the_container(project):
    written = project.request("items", "PUT", "/items/compose", {"data": [[6.7, 3.1, 4.7, 1.5]]})
    assert written.status in (200, 201)
    project.finished("restart", "--timeout", "30", "items")
    wait_until(lambda: project.is_healthy(f"{project.name}_items_1"), "the server runs again")
    assert project.request("items", "GET", "/items/compose").json()["data"] == [[6.7, 3.1, 4.7, 1.5]]
    assert project.request("items", "GET", "/items/compose/prediction").json()["label"] == "versicolor"


@pytest.mark.long
def test_prometheus_scrapes_every_server_and_evaluates_every_rule(project):
    def api(path: str) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{project.ports['prometheus']}/api/v1/{path}") as response:
            return json.load(response)["data"]

    def found_targets() -> set[tuple[str, str]]:
        return {(target["labels"]["component"], target["health"]) for target in api("targets")["activeTargets"]}

    wait_until(lambda: found_targets() == {(name, "up") for name in PODS}, "each server was scraped")
    rules = yaml.safe_load((MANIFESTS / "observability/rules.yml").read_text())["groups"]
    loaded = api("rules")["groups"]
    assert sorted(len(group["rules"]) for group in loaded) == sorted(len(group["rules"]) for group in rules)
