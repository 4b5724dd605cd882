"""The image in containers with the limits of a cluster, and the files in it."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path

import pytest
import yaml
from doc_examples import commands_for, matches_shown, run_command, with_test_server
from http_clients import child_pids, wait_until
from optional_programs import require_program
from packed_models import write_model
from project import ROOT
from project_images import BIN, EDGE, FULL, IMAGE, build_image
from server_process import error_of, free_ports

import iris_wsgi
from iris_wsgi.server.serve import STARTED

sys.path.insert(0, str(ROOT / "bin/image.d"))
import archive
import container_engine
import lockfile

HARD = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--pids-limit", "64")
SMALL = ("--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5")
POINTS = {"setosa": [5.1, 3.5, 1.4, 0.2], "versicolor": [6.7, 3.1, 4.7, 1.5], "virginica": [7.2, 3.6, 6.1, 2.5]}
TIMEOUT_SECONDS = 60

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning:cyclonedx")]


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> str:
    """Container engine, with the built image. These tests take minutes, so on a laptop they run only if the file is named."""
    if os.environ.get("CI") == "true":
        require_program("podman")
    elif "test_image.py" not in " ".join(map(str, request.config.invocation_params.args)):
        pytest.skip("run it by its name: bin/test tests/project/test_image.py")
    try:
        runner = container_engine.runner(container_engine.first_working_tool())
    except container_engine.EngineError as error:
        pytest.skip(str(error))
    build_image(IMAGE, "default")
    return runner


@pytest.fixture(scope="session")
def image(runner: str) -> archive.Image:
    return archive.read(runner, IMAGE)


@pytest.fixture(scope="session")
def full(runner: str) -> str:
    """Image that also has redis-py and psycopg."""
    build_image(FULL, "full")
    return FULL


class Container:
    """Container in the background. The test enters its network to send requests."""

    def __init__(self, runner: str, name: str) -> None:
        self.runner, self.name = runner, name

    def inspect(self, field: str) -> str:
        return self.run("inspect", "--format", "{{" + field + "}}", self.name).stdout.strip()

    def run(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([self.runner, *words], capture_output=True, text=True)

    @cached_property
    def pid(self) -> int:
        """Process id of the container. It does not change, and an engine reports it slowly."""
        return int(self.inspect(".State.Pid"))

    @property
    def inside(self) -> list[str]:
        """Returns the command prefix that enters the container's network."""
        return ["nsenter", "--target", str(self.pid), "--net"]

    def finished_record(self, job: dict) -> dict:
        """Waits until a job is done and returns its record."""
        return json.loads(self.curl(job["href"], None, "Prefer: wait=20"))

    def logs(self) -> str:
        result = self.run("logs", self.name)
        return result.stdout + result.stderr

    def wait_until(self, happened: Callable[[], object]) -> None:
        wait_until(happened, f"what {self.name} is to do; its log: {self.logs()}")

    def serves(self) -> "Container":
        self.wait_until(lambda: STARTED in self.logs() or self.inspect(".State.Running") == "false")
        assert self.inspect(".State.Running") == "true", self.logs()
        return self

    def curl(self, path: str, body: object = None, *headers: str, port: int = 8000, more: tuple[str, ...] = ()) -> bytes:
        """Sends a request in the container's network, which has only the loopback interface."""
        words = [*self.inside, "curl", "-sS", "--max-time", "30", *more, f"http://127.0.0.1:{port}{path}"]
        words += [word for header in headers for word in ("-H", header)]
        if body is not None:
            words += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
        request_body = None if body is None else json.dumps(body).encode()
        return subprocess.run(words, input=request_body, capture_output=True, check=True).stdout

    def put(self, path: str, body: object, port: int = 8000) -> bytes:
        return self.curl(path, body, port=port, more=("--request", "PUT"))

    def cache_status(self, path: str, body: object = None, port: int = 8000) -> str:
        """Returns the header Cache-Status of a response."""
        only_that = ("--output", "/dev/null", "--write-out", "%header{cache-status}")
        return self.curl(path, body, port=port, more=only_that).decode()

    def wait_until_ended(self) -> int:
        self.wait_until(lambda: self.inspect(".State.Running") == "false")
        return int(self.inspect(".State.ExitCode"))


@pytest.fixture
def container(runner: str, tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Function that starts containers. The fixture removes them."""
    names: list[str] = []

    def start(*words: str, flags: tuple[str, ...] = (*HARD, *SMALL, "--network", "none"), image: str = IMAGE) -> Container:
        names.append(f"iris-wsgi-test-{os.getpid()}-{len(names)}")
        command = [runner, "run", "--detach", "--name", names[-1], *flags, image, *words]
        # Some engines leave a file in their current folder.
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        return Container(runner, names[-1])

    yield start
    # The newest container first, because it may use the network of another one.
    for name in reversed(names):
        subprocess.run([runner, "kill", name], capture_output=True)
        subprocess.run([runner, "rm", "--force", name], capture_output=True)


def command(
    runner: str, *words: str, flags: tuple[str, ...] = ("--network", "none"), image: str = IMAGE
) -> subprocess.CompletedProcess:
    """Runs a command of the image until its end."""
    return subprocess.run([runner, "run", "--rm", *HARD, *flags, image, *words], capture_output=True, text=True, timeout=120)


def test_the_server_returns_the_known_labels_within_the_limits_of_a_cluster(container):
    server = container().serves()
    for label, row in POINTS.items():
        assert json.loads(server.curl("/predict/label", {"data": [row]})) == {"prediction": label}
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4 and status["Gid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"
    assert '"workers":1,' in server.logs() and "allows 0.5 of" in server.logs()


def test_the_image_names_the_packages_that_it_does_not_have(runner):
    for words, package in ((("/in.parquet", "/out.csv"), "pyarrow"), (("/in.csv", "/out", "--engine", "ray"), "ray")):
        result = command(runner, "batch", *words)
        assert result.returncode == 2 and f"needs the package {package}: " in result.stderr
        assert "Traceback" not in result.stderr


def test_48_mb_of_memory_are_enough_for_large_requests_too(container):
    server = container(flags=(*HARD, "--network", "none", "--cpus", "1", "--memory", "48m", "--memory-swap", "48m")).serves()
    batch = {"data": [POINTS["virginica"]] * 10_000}
    for _ in range(5):
        assert json.loads(server.curl("/predict/batch", batch))["labels"] == ["virginica"] * 10_000
    assert server.inspect(".State.OOMKilled") == "false"


def test_the_server_writes_no_file_and_opens_no_other_socket(runner, container):
    server = container(flags=("--network", "none")).serves()
    idle = container("healthcheck", flags=("--network", "none"))
    idle.wait_until_ended()
    assert json.loads(server.curl("/predict/label", {"data": [POINTS["setosa"]]})) == {"prediction": "setosa"}
    # A container without activity also has the files of the engine.
    assert server.run("diff", server.name).stdout == idle.run("diff", idle.name).stdout
    tcp = [line.split() for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]]
    # State 06 is TIME_WAIT, which belongs to the requests of the test.
    assert [(fields[1], fields[3]) for fields in tcp if fields[3] != "06"] == [("00000000:1F40", "0A")]
    for table in ("tcp6", "udp", "udp6", "raw", "unix"):
        assert len(Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()) == 1, table


def test_sigterm_lets_running_requests_finish_and_the_container_exits_with_0(container):
    server = container(flags=(*HARD, *SMALL, "--publish", "127.0.0.1:18000:8000")).serves()
    body = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
    with socket.create_connection(("127.0.0.1", 18000), TIMEOUT_SECONDS) as client:
        client.sendall(
            b"POST /predict/label HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 100 ")
        os.kill(server.pid, signal.SIGTERM)
        client.sendall(body)
        response = client.makefile("rb").read()
    assert response.startswith(b"HTTP/1.1 200 ") and response.endswith(b'\r\n\r\n{"prediction":"setosa"}\n')
    assert b"\r\nConnection: close\r\n" in response
    assert server.wait_until_ended() == 0


def test_an_idle_server_ends_within_its_own_time_and_not_by_the_kill_of_the_engine(container):
    server = container().serves()
    server.run("stop", "--time", "30", server.name)
    assert server.wait_until_ended() == 0


@pytest.mark.parametrize("name", ["iris_svc.onnx", "label.json", "training.csv"])
def test_a_changed_byte_in_the_model_stops_the_start_with_one_line(runner, tmp_path, name):
    content = bytearray((ROOT / "model" / name).read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / name
    changed.write_bytes(content)
    changed.chmod(0o644)
    result = command(runner, "serve", flags=("--network", "none", "--volume", f"{changed}:/model/{name}:ro"))
    assert result.returncode == 1
    assert f"/model/{name} has the SHA-256" in error_of(result.stderr.splitlines()[-1])


def test_the_health_check_distinguishes_a_hanging_server_from_a_working_one(container):
    server = container().serves()
    assert json.loads(server.inspect("json .Config.Healthcheck.Test"))[0] == "CMD"
    check = ("exec", server.name, "/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "healthcheck")
    assert server.run(*check).returncode == 0
    if server.runner == "podman":
        assert server.run("healthcheck", "run", server.name).returncode == 0
    (worker,) = child_pids(server.pid)
    os.kill(worker, signal.SIGSTOP)
    hung = server.run(*check)
    os.kill(worker, signal.SIGCONT)
    assert hung.returncode == 1 and "no response from 127.0.0.1 port 8000" in hung.stdout + hung.stderr
    assert server.run(*check).returncode == 0


def test_a_plain_run_with_a_published_port_needs_no_further_flag(container):
    require_program("curl")
    container(flags=("--publish", "127.0.0.1:18001:8000")).serves()
    result = subprocess.run(["curl", "-sS", "http://127.0.0.1:18001/health"], capture_output=True, check=True)
    assert json.loads(result.stdout) == {"health": "ok"}


def test_the_labels_and_the_configuration_describe_the_image(image):
    config = image.config["config"]
    model = json.loads((ROOT / "model/golden.json").read_text())
    assert config["User"] == "65532:65532" and config["ExposedPorts"] == {"8000/tcp": {}}
    assert config["Entrypoint"] == ["/usr/bin/python3.13", "-I", "-m", "iris_wsgi"] and config["Cmd"] == ["serve"]
    assert {"IRIS_ROLE=web_single", "IRIS_HOST=0.0.0.0", "IRIS_STATE_DIR=/state", "ORT_DISABLE_TELEMETRY=1"} <= set(config["Env"])
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "/usr/bin/python3.13"]
    assert config["Labels"]["iris-wsgi.model.digest"] == f"sha256:{model['files'][model['model']]}"
    assert config["Labels"]["org.opencontainers.image.version"] and config["Labels"]["org.opencontainers.image.revision"]
    assert image.config["created"] == config["Labels"]["org.opencontainers.image.created"] == container_engine.commit_time(ROOT)


def test_the_archive_for_a_cluster_is_the_same_image_under_the_name_in_the_manifests(runner, image, tmp_path):
    out = tmp_path / "image.tar"
    result = subprocess.run([BIN, "save", "--out", out], capture_output=True, text=True, check=True)
    assert result.stdout == f"{out} docker.io/library/model-in-image-pattern:v1.0\n"
    with tarfile.open(out) as file:
        (manifest,) = json.load(file.extractfile("manifest.json"))
    assert manifest["RepoTags"] == ["docker.io/library/model-in-image-pattern:v1.0"]
    assert manifest["Config"] == f"{image.id.removeprefix('sha256:')}.json"


def test_there_is_no_shell_no_package_manager_and_no_source(image):
    names = {Path(file.path).name for file in image.files}
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3", "perl", "su", "mount"}
    assert not [file.path for file in image.files if file.path.endswith(".py") or "__pycache__" in file.path]
    assert [file.path for file in image.files if file.path.startswith(("bin/", "sbin/", "usr/bin/", "usr/sbin/"))] == [
        "usr/bin/python3.13"
    ]


def test_the_model_is_in_the_image_once_with_its_credit(image):
    paths = [file.path for file in image.files]
    assert [path for path in paths if path.endswith("iris_svc.onnx")] == ["model/iris_svc.onnx"]
    assert {f"usr/share/doc/iris_wsgi/{name}" for name in ("LICENSE", "NOTICE")} <= {*paths}
    assert image.config["config"]["Labels"]["org.opencontainers.image.licenses"] == "MIT"


def test_each_package_comes_with_its_license_and_each_text_is_there_once(image):
    paths = [file.path for file in image.files]
    sizes = [file.size for file in image.files if file.path.endswith("/copyright") and file.size]
    assert len(sizes) == len({*sizes})
    for file in image.files:
        if file.path.startswith("var/lib/dpkg/status.d/"):
            assert f"usr/share/doc/{Path(file.path).name}/copyright" in paths
        if file.path.endswith(".dist-info/METADATA"):
            folder = str(Path(file.path).parent)
            package = Path(folder).name.split("-")[0]
            assert [p for p in paths if "licen" in p.lower() and p.startswith((folder, f"{Path(folder).parent}/{package}/"))], (
                file.path
            )


def test_the_image_is_as_small_as_promised(image):
    assert image.bytes <= 65e6 and image.compressed <= 25e6


def test_the_full_image_has_the_packages_of_the_other_roles_and_little_more(runner, image, full):
    code = (
        "import redis, psycopg, ssl; assert psycopg.pq.__impl__ == 'binary'; "
        "redis.Redis(ssl=True); ssl.create_default_context(); print('ok')"
    )
    result = command(runner, "-I", "-c", code, flags=("--entrypoint", "/usr/bin/python3.13"), image=full)
    assert result.stdout == "ok\n", result.stderr
    assert command(runner, "verify", image=full).returncode == 0
    more = archive.read(runner, full)
    assert more.bytes - image.bytes <= 15e6
    shared = {file.path for file in image.files}
    assert shared < {file.path for file in more.files}


@pytest.fixture(scope="session")
def edge(runner: str) -> str:
    """Image with the edge bundle, together with the plain image."""
    subprocess.run([ROOT / "bin/edge", "build"], check=True, stdout=subprocess.DEVNULL)
    build_image(EDGE, "edge")
    return EDGE


@pytest.fixture
def state(runner: str) -> tuple[str, ...]:
    """Flags for a /state in memory that the user may write to. Docker and Podman have different flags."""
    if runner == "podman":
        return ("--mount", "type=tmpfs,destination=/state,chown")
    return ("--tmpfs", "/state:uid=65532,gid=65532,mode=0700")


def test_all_roles_work_on_embedded_stores_within_the_limits_of_a_cluster(container, state):
    flags = (*HARD, *SMALL, "--network", "none", *state, "--env", "IRIS_ROLE=all")
    server = container(flags=flags).serves()
    rows = list(POINTS.values())
    record = server.finished_record(json.loads(server.curl("/jobs", {"data": rows})))
    assert (record["status"], record["result"]["labels"]) == ("succeeded", list(POINTS))
    for label, row in POINTS.items():
        document = json.loads(server.curl("/predict/hybrid", {"data": [row]}))
        assert (document["provisional"]["model"]["name"], document["degraded"]) == ("iris_lr", False)
        record = server.finished_record(document["final"])
        assert (record["result"]["labels"], record["model"]["name"]) == ([label], "iris_svc")
        assert record["agrees"] == (document["provisional"]["label"] == label)
    server.run("stop", "--time", "30", server.name)
    assert server.wait_until_ended() == 0


def test_the_tour_of_all_patterns_succeeds_inside_a_container_and_from_another_one(runner, container, state):
    memory = ("--memory", "256m", "--memory-swap", "256m")
    server = container(flags=(*HARD, *memory, "--network", "none", *state, "--env", "IRIS_ROLE=all")).serves()
    inside = server.run("exec", server.name, "/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "tour")
    from_another_container = command(runner, "tour", "http://127.0.0.1:8000", flags=("--network", f"container:{server.name}"))
    for process in (inside, from_another_container):
        assert (process.returncode, process.stdout.count("\nright\n")) == (0, 9), process.stdout + process.stderr
        # This image has no bundle for browsers. The target edge has one.
        assert "\n9 of 10 patterns of role all are right; not set up: edge AI\n" in process.stdout
        assert "the command works, but the server has no bundle for devices: set IRIS_EDGE_DIR to " in process.stdout
        assert "$ python3 -m iris_wsgi edge predict" in process.stdout


def test_a_volume_for_the_stores_needs_no_preparation_and_outlives_its_containers(runner, container):
    volume = f"iris-wsgi-test-{os.getpid()}"
    flags = (*HARD, *SMALL, "--network", "none", "--volume", f"{volume}:/state", "--env")
    used = []

    def kill_container(item: Container) -> None:
        os.kill(item.pid, signal.SIGKILL)
        item.wait_until_ended()

    try:
        used.append(jobs := container(flags=(*flags, "IRIS_ROLE=asynchronous")).serves())
        job = json.loads(jobs.curl("/jobs", {"data": [POINTS["setosa"]]}))
        kill_container(jobs)
        used.append(items := container(flags=(*flags, "IRIS_ROLE=data_cache")).serves())
        assert json.loads(items.curl("/items/0000")) == {"id": "0000", "version": 1, "data": [POINTS["setosa"]]}
        assert "; hit" in items.cache_status("/items/0000")
        written = items.put("/items/0000", {"data": [POINTS["virginica"]]})
        result = items.curl("/items/0000/prediction")
        assert (json.loads(result)["version"], json.loads(result)["label"]) == (2, "virginica")
        kill_container(items)
        used.append(server := container(flags=(*flags, "IRIS_ROLE=all")).serves())
        assert server.finished_record(job)["result"]["labels"] == ["setosa"]
        assert (server.curl("/items/0000"), server.curl("/items/0000/prediction")) == (written, result)
        for item in used:
            subprocess.run([runner, "rm", "--force", item.name], capture_output=True)
    finally:
        subprocess.run([runner, "volume", "rm", "--force", volume], capture_output=True)


def redis_of_the_manifests(server: Container, folder: Path) -> subprocess.Popen:
    """Starts Redis in the container's network, with the command line of the manifests. `folder` is its volume."""
    (redis,) = yaml.safe_load((ROOT / "manifests/jobs/redis/deployment.yml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    words = [{"/data": str(folder), "$(REDISCLI_AUTH)": "secret"}.get(word, word) for word in redis["args"]]
    return subprocess.Popen([*server.inside, require_program("redis-server"), *words], stdout=subprocess.DEVNULL)


def test_two_roles_in_two_containers_share_the_jobs_of_a_redis_and_none_is_lost_when_redis_is_killed(container, full, tmp_path):
    hard = (*HARD, *SMALL, "--env", "IRIS_REDIS_URL=redis://:secret@127.0.0.1:6379/0")
    server = container(flags=(*hard, "--network", "none", "--env", "IRIS_ROLE=asynchronous"), image=full).serves()
    redis = redis_of_the_manifests(server, tmp_path)
    try:
        up = b'{"jobs":'
        server.wait_until(lambda: server.curl("/jobs").replace(b" ", b"").startswith(up))
        waits = json.loads(server.curl("/jobs", {"data": [POINTS["virginica"]]}))
        redis.kill()
        redis.wait()
        assert json.loads(server.curl(waits["href"]))["status"] == 503
        redis = redis_of_the_manifests(server, tmp_path)
        server.wait_until(lambda: server.curl("/jobs").replace(b" ", b"").startswith(up))
        assert json.loads(server.curl(waits["href"]))["status"] == "queued"
        container_flags = ("--network", f"container:{server.name}", "--env", "IRIS_ROLE=worker", "--env", "IRIS_PORT=8001")
        worker = container(flags=(*hard, *container_flags), image=full).serves()
        record = server.finished_record(waits)
        assert (record["status"], record["result"]["labels"]) == ("succeeded", ["virginica"])
        assert b'job_attempts_total{outcome="succeeded"} 1' in worker.curl("/metrics", port=8001)
        check = ("exec", worker.name, "/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "healthcheck")
        assert worker.run(*check).returncode == 0
        worker.run("stop", "--time", "30", worker.name)
        assert worker.wait_until_ended() == 0
    finally:
        redis.kill()
        redis.wait()


def test_a_container_of_the_prediction_cache_responds_from_its_memory(container):
    server = container(flags=(*HARD, *SMALL, "--network", "none", "--env", "IRIS_ROLE=prediction_cache")).serves()
    for label, row in POINTS.items():
        body = {"data": [row]}
        assert server.cache_status("/predict", body) == "iris_wsgi; fwd=miss; stored"
        assert server.cache_status("/predict", body).startswith("iris_wsgi; hit; ttl=")
        assert server.curl("/predict", body) == server.curl("/predict", body, "Cache-Control: no-store")
        assert json.loads(server.curl("/predict/label", body)) == {"prediction": label}
    check = ("exec", server.name, "/usr/bin/python3.13", "-I", "-m", "iris_wsgi", "clear")
    assert server.run(*check).returncode == 0
    assert json.loads(server.curl("/cache"))["entries"] == 0


def test_two_caches_in_two_containers_share_a_redis_and_respond_as_before_when_redis_is_killed(container, full, state, tmp_path):
    url = "redis://:secret@127.0.0.1:6379/0"
    hard = (*HARD, *SMALL, "--env", f"IRIS_CACHE_REDIS_URL={url}", "--env")
    output = container(flags=(*hard, "IRIS_ROLE=prediction_cache", "--network", "none"), image=full).serves()
    redis = redis_of_the_manifests(output, tmp_path)
    try:
        container_flags = ("--network", f"container:{output.name}", "--env", "IRIS_PORT=8001", *state)
        settings = ("--env", "IRIS_CACHE=on")
        items = container(flags=(*hard, "IRIS_ROLE=data_cache", *container_flags, *settings), image=full).serves()

        def item(name: str) -> dict:
            return json.loads(items.curl(f"/items/{name}/prediction", port=8001))

        def has_shared_results() -> bool:
            """Returns whether an item comes from Redis, and whether one container's prediction is in the cache of the other."""
            number = next(numbers)
            row = [float(number), 3.0, 4.0, 1.0]
            items.put(f"/items/i{number}", {"data": [row]}, 8001)
            in_redis = "detail=redis" in items.cache_status(f"/items/i{number}", port=8001)
            result, status = item(f"i{number}"), output.cache_status("/predict", {"data": [row]})
            assert json.loads(output.curl("/predict", {"data": [row]}))["prediction"] == result["probabilities"]
            return in_redis and status == "iris_wsgi_shared; hit, iris_wsgi; fwd=miss; stored"

        numbers = count(1)
        output.wait_until(has_shared_results)
        redis.kill()
        redis.wait()
        for i, (label, row) in enumerate(POINTS.items()):
            assert output.cache_status("/predict/label", {"data": [row]}) == "iris_wsgi; fwd=miss; stored"
            assert json.loads(output.curl("/predict/label", {"data": [row]})) == {"prediction": label}
            items.put(f"/items/p{i}", {"data": [row]}, 8001)
            assert item(f"p{i}")["label"] == label
        assert not has_shared_results()
        assert json.loads(output.curl("/cache"))["shared_failures"] > 0
    finally:
        redis.kill()
        redis.wait()


def shard_of_the_manifests(index: int) -> tuple[list[str], tuple[str, ...]]:
    """Returns the arguments of the Indexed Job for this index, and flags for half of its memory and CPU."""
    (result,) = yaml.safe_load((ROOT / "manifests/batch/file.yml").read_text())["spec"]["template"]["spec"]["containers"]
    limits = result["resources"]["limits"]
    memory = f"{int(limits['memory'].removesuffix('Mi')) // 2}m"
    words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in result["args"]]
    return words, (*HARD, "--memory", memory, "--memory-swap", memory, "--cpus", limits["cpu"], "--network", "none")


def test_shards_of_a_file_in_containers_contain_each_row_once_even_if_one_is_stopped_and_killed(container, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    # Folder that the pods may write to, like a volume.
    folder.chmod(0o777)
    rows = [",".join(map(str, row)) for row in POINTS.values()]
    lines = "".join(f"r{i},{rows[i % 3]}\n" for i in range(400_000))
    (folder / "in.csv").write_text(f"id,sepal_length,sepal_width,petal_length,petal_width\n{lines}")
    output, record = folder / "out-0.csv", folder / "out-0.csv.run.json"

    def start_shard(index: int, *more: str) -> Container:
        words, flags = shard_of_the_manifests(index)
        return container(*words, "--checkpoint", "0", flags=(*flags, "--volume", f"{folder}:/data", *more))

    def position() -> int:
        return json.loads(record.read_text())["checkpoint"]["offset"] if record.exists() else 0

    other_shards = [start_shard(index) for index in (1, 2, 3)]

    def ended_on_its_way(number: int) -> Container:
        """Starts a slow shard and ends it with a signal before it finishes."""
        before = position()
        item = start_shard(0, "--cpus", "0.2")
        pid = item.pid
        item.wait_until(lambda: position() > before)
        os.kill(pid, number)
        item.wait_until_ended()
        assert not output.exists()
        return item

    stopped = ended_on_its_way(signal.SIGTERM)
    assert stopped.wait_until_ended() == 4 and "the same command resumes the run" in stopped.logs()
    assert ended_on_its_way(signal.SIGKILL).wait_until_ended() == 137
    assert [other.wait_until_ended() for other in (start_shard(0), *other_shards)] == [0, 0, 0, 0]
    found = {}
    for index in range(4):
        path = folder / f"out-{index}.csv"
        header, *responses = path.read_text().splitlines()
        assert header.startswith("id,label,")
        if os.geteuid() == 0:
            assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (65532, 65532, 0o644)
        assert responses and not found.keys() & {line.split(",")[0] for line in responses}
        found |= {line.split(",")[0]: line.split(",")[1] for line in responses}
    assert found == {f"r{i}": list(POINTS)[i % 3] for i in range(400_000)}
    again = start_shard(0)
    assert again.wait_until_ended() == 0 and "nothing to do" in again.logs()


def test_the_edge_image_is_the_plain_one_and_a_layer_with_the_bundle(runner, image, edge, tmp_path):
    more = archive.read(runner, edge)
    assert more.config["rootfs"]["diff_ids"][:-1] == image.config["rootfs"]["diff_ids"]
    new = {file.path: file.size for file in more.files if file not in image.files}
    bundle = {path.relative_to(ROOT / "dist"): path.stat().st_size for path in (ROOT / "dist/edge").rglob("*") if path.is_file()}
    assert new == {str(path): size for path, size in bundle.items()} and "edge/manifest.json" in new
    assert not [file.path for file in image.files if file.path.startswith("edge/")]
    out = tmp_path / "sbom.json"
    subprocess.run([BIN, "sbom", "--target", "edge", "--out", out], check=True, capture_output=True)
    (runtime,) = [part for part in json.loads(out.read_text())["components"] if part["name"] == "onnxruntime-web"]
    assert runtime["purl"] == f"pkg:npm/onnxruntime-web@{runtime['version']}"


def test_the_bundle_is_served_within_the_limits_of_a_pod_and_a_device_downloads_it(runner, container, edge, tmp_path):
    limits = ("--memory", "128m", "--memory-swap", "128m", "--cpus", "1")
    server = container(flags=(*HARD, *limits, "--network", "none"), image=edge).serves()
    packed = server.curl("/edge/ort/ort-wasm-simd-threaded.wasm", None, "Accept-Encoding: gzip")
    assert packed == (ROOT / "dist/edge/ort/ort-wasm-simd-threaded.wasm.gz").read_bytes()
    # The image can also be the device, with a volume for its bundles.
    state = tmp_path / "state"
    state.mkdir()
    for path in (tmp_path, state):
        path.chmod(0o777)
    disk = ("--volume", f"{state}:/state")
    update = ("edge", "update", "http://127.0.0.1:8000/edge/")
    result = command(runner, *update, flags=("--network", f"container:{server.name}", *disk))
    assert result.returncode == 0 and "34 golden rows answered" in result.stdout, result.stderr
    for label, row in POINTS.items():
        result = command(runner, "edge", "predict", *map(str, row), flags=("--network", "none", *disk))
        assert (result.returncode, result.stdout.split()[0]) == (0, label), result.stderr
    assert len(list((state / "edge/bundles").iterdir())) == 1


def test_every_command_of_the_image_works(runner, tmp_path):
    assert command(runner, "--version").stdout.startswith("iris_wsgi ")
    for name in re.findall(r"^    (\w+) ", command(runner, "--help").stdout, re.MULTILINE):
        assert command(runner, name, "--help").returncode == 0, name
    assert re.search(r"self-test: 34 golden rows(.|\n)*fast model iris_lr .*: 31 golden rows", command(runner, "verify").stdout)
    wrong = command(runner, "serve", flags=("--env", "IRIS_PROT=1"))
    assert (wrong.returncode, error_of(wrong.stderr.splitlines()[-1])) == (
        2,
        "IRIS_PROT is not a setting; did you mean IRIS_PORT?",
    )


# README.md and README.ja.md have the same commands.
@pytest.mark.parametrize(
    "item",
    {item.text: item for item in commands_for("image")}.values(),
    ids=lambda element: f"{element.document.name} {element.text.splitlines()[0][:40]}",
)
def test_the_commands_of_the_documents_that_need_an_image_or_an_npm_package_work(runner, item, tmp_path):
    require_program("curl")
    (port,) = free_ports(1)
    own = f"iris-wsgi-test-{os.getpid()}"
    text = with_test_server(item.text, port, tmp_path).replace("-p 8000:", f"-p {port}:")
    text = re.sub(r"(--name |rm -f |-v )iris\b", rf"\1{own}", re.sub(r"^docker\b", runner, text, flags=re.MULTILINE))
    try:
        # The output of the builder comes first.
        result = run_command(["sh", "-ec", text], tmp_path, ROOT if "bin/" in text else tmp_path)
        assert matches_shown(result, f"…{item.output}") if item.output else result, result
    finally:
        for words in (("rm", "--force", own), ("volume", "rm", "--force", f"{own}-state")):
            subprocess.run([runner, *words], capture_output=True)


def test_your_own_model_can_be_loaded_and_served_by_the_image(runner, container, tmp_path):
    own = Path(shutil.copytree(ROOT / "model/fast", tmp_path / "own"))
    (own / "golden.json").unlink()
    for path in (tmp_path, own):
        path.chmod(0o777)
    # The image has no converter, so the model is packed outside.
    seal = iris_wsgi.pack(own / "iris_lr.onnx", None, own).seal
    into = tmp_path / "into"
    into.mkdir()
    into.chmod(0o777)
    volumes = ("--volume", f"{own}:/own:ro", "--volume", f"{into}:/into")
    result = command(runner, "load", "/own", "/into", "--seal", seal, flags=("--network", "none", *volumes))
    assert result.returncode == 0, result.stderr
    flags = ("--network", "none", "--env", "IRIS_MODEL_DIR=/into", "--env", f"IRIS_MODEL_SEAL={seal}", *volumes)
    server = container(flags=(*HARD, *SMALL, *flags)).serves()
    assert json.loads(server.curl("/metadata"))["model"]["name"] == "iris_lr"


@pytest.mark.parametrize("kind", ["tree regressor of several types with missing values", "weights in a second file"])
def test_one_command_makes_an_image_with_your_own_model(runner, container, tmp_path, kind):
    own, tag = write_model(tmp_path / "own", kind), f"iris-wsgi-own-{os.getpid()}:v1"
    (own / "notes.txt").write_text("not for the image")
    done = subprocess.run([BIN, "build", "--model-dir", own, "--tag", tag], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    try:
        seal = f"sha256:{hashlib.sha256((own / 'golden.json').read_bytes()).hexdigest()}"
        image = archive.read(runner, tag)
        names = json.loads((own / "golden.json").read_text())["files"]
        assert {file.path for file in image.files if file.path.startswith("model/")} == {
            f"model/{name}" for name in ("golden.json", *names)
        }
        server = container(image=tag).serves()
        assert server.inspect('index .Config.Labels "iris-wsgi.model.seal"') == seal
        case = json.loads((own / "golden.json").read_text())["rows"][0]
        answer = json.loads(server.curl("/predict", {"data": [case["row"]]}))
        assert answer.get("values", answer.get("prediction")) == pytest.approx(
            case.get("values", case.get("probabilities")), 1e-5
        )
    finally:
        subprocess.run([runner, "rmi", "--force", tag], capture_output=True)


def test_a_model_with_wrong_results_or_damage_cannot_become_an_image(runner, tmp_path):
    context = Path(
        shutil.copytree(
            ROOT, tmp_path / "context", ignore=shutil.ignore_patterns(".git", ".venv*", ".coverage*", "build", "tests")
        )
    )
    golden = context / "model/golden.json"
    good = golden.read_text()
    wrong = (good.replace('"label": "setosa"', '"label": "virginica"', 1), "label.json", "expected is virginica")
    for bad, damaged, words in (
        wrong,
        (good, "prep/label.json", "prep/label.json has"),
        (good, "fast/label.json", "fast/label.json has"),
        (good, "label.json", "model/label.json has"),
    ):
        golden.write_text(bad)
        if bad == good:
            with (context / "model" / damaged).open("a") as file:
                file.write(" ")
        build = [sys.executable, "-B", str(context / "bin/image.d"), "--with", runner, "build", "--tag", "iris-wsgi-test:wrong"]
        result = subprocess.run(build, capture_output=True, text=True)
        assert result.returncode == 1 and words in result.stdout + result.stderr, result.stderr[-2000:]
    assert subprocess.run([runner, "image", "inspect", "iris-wsgi-test:wrong"], capture_output=True).returncode != 0


def test_a_build_with_another_tool_gives_the_same_image_of_the_locked_packages(runner, image):
    if os.environ.get("CI") != "true":
        pytest.skip("takes a whole build; bin/image verify does two by hand")
    require_program("buildah")
    again = "iris-wsgi-test:buildah"
    container_engine.build("buildah", ROOT, "default", again, fresh=True)
    assert archive.normalize("buildah", again) == image.id
    assert lockfile.differences(image, ROOT / "bin/image.d") == []


def test_the_bill_of_materials_is_valid_and_complete(runner, image, tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    out = tmp_path / "sbom.json"
    subprocess.run([BIN, "sbom", "--out", out], check=True, capture_output=True)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(out.read_text()) is None
    listed = {part["name"].lower(): part for part in json.loads(out.read_text())["components"]}
    assert {
        "onnxruntime",
        "numpy",
        "waitress",
        "iris_wsgi",
        "iris_svc.onnx",
        "iris_lr.onnx",
        "iris_prep.onnx",
        "iris_pred.onnx",
        "iris_setosa.onnx",
        "iris_versicolor.onnx",
        "iris_virginica.onnx",
        "libc6",
        "python3.13-minimal",
    } <= set(listed)
    assert len(listed) == len(re.findall(r"status\.d/|dist-info/METADATA", "\n".join(file.path for file in image.files))) + 8
    assert (
        f"sha256:{listed['iris_svc.onnx']['hashes'][0]['content']}" == image.config["config"]["Labels"]["iris-wsgi.model.digest"]
    )


def test_the_size_report_adds_up(runner, image):
    result = subprocess.run([BIN, "report"], capture_output=True, text=True, check=True).stdout.splitlines()
    sizes = {line[:28].strip(): float(line[28:36]) for line in result[2:-1]}
    total = sizes.pop("in all")
    assert total == pytest.approx(image.bytes / 1e6, abs=0.01)
    assert sum(sizes.values()) == pytest.approx(total, abs=0.1)
    assert container_engine.TOOLS == ("docker", "podman", "buildah")
