"""Both caches under random sequences of events, including new models: threads send requests to several servers over one Redis."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from http_clients import METRICS, HttpResponse, fetch, http_request, metric_sum, wait_until
from predictors import predictor
from project import MODEL
from redis_server import RedisServer
from server_process import ServerProcess
from worker_processes import serving_workers

from iris_wsgi.cli.main import main
from iris_wsgi.codec.rows import Encoder
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.data_cache.role import ItemResponses

pytestmark = pytest.mark.long

# Both models have the same inputs and the same labels.
MODELS = (MODEL, MODEL / "fast")
CLIENTS = 6
# Changes of the model, each once: a new server with the other model replaces a server, or a server loads the other model.
CHANGES = ("replace", "reload", "replace")
# Headers that belong to a single response or to the connection.
OWN_FIELDS = {"date", "connection", "cache-status", "age"}
# Time within which a server sees the writes of another server.
BOUND_SECONDS = 0.3
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5], [6.0, 2.9, 4.9, 1.8], [5.9, 3.0, 0.0, 1.8]]
ODD_ROWS = [[5.9, 3.0, -0.0, 1.8], [0.0, 0.0, 0.0, 1e-40], [3e38, 1, 1, 1], [1e39, 1, 1, 1], [1, 2, 3], ["5", 1, 1, 1]]


class Pod:
    """Server with one model, or with two while its processes are replaced."""

    def __init__(self, folder: Path, model: Path, workers: int, start: Callable[..., ServerProcess]) -> None:
        self.place, self.workers, self.models, self.askers = folder, workers, frozenset([model]), 0
        folder.symlink_to(model)
        self.server = start("--model-dir", str(folder), "--workers", str(workers))
        wait_until(lambda: len(serving_workers(self.server)) == workers, "all processes serve")

    @property
    def next_model(self) -> Path:
        (model,) = self.models
        return MODELS[1 - MODELS.index(model)]

    def reload(self) -> None:
        """Replaces the model in the folder, and restarts all processes."""
        new, before = self.next_model, set(serving_workers(self.server))
        self.models |= {new}
        fresh = self.place.with_suffix(".new")
        fresh.symlink_to(new)
        fresh.replace(self.place)
        os.kill(self.server.process.pid, signal.SIGHUP)

        def has_new_model() -> bool:
            now = serving_workers(self.server)
            return len(now) == self.workers and not before & set(now)

        wait_until(has_new_model, "all processes have the other model")
        self.models = frozenset([new])


class Pods:
    """Servers that threads use while other threads change them. `start` starts the server with this number."""

    def __init__(self, folder: Path, start: Callable[..., ServerProcess], *workers: int) -> None:
        self.folder, self.start_server, self.workers = folder, start, workers
        self.lock, self.changing, self.numbers = threading.Lock(), [threading.Lock() for _ in workers], count()
        # Logs of the stopped servers.
        self.metrics: list[str] = []
        self.pods = [self.start(number, MODELS[number % 2]) for number in range(len(workers))]

    def start(self, number: int, model: Path) -> Pod:
        folder = self.folder / f"model-{next(self.numbers)}"
        return Pod(folder, model, self.workers[number], lambda *words: self.start_server(number, *words))

    @contextmanager
    def any(self, chance: random.Random) -> Iterator[Pod]:
        """Lends a random server. The server does not stop before the end of the block."""
        with self.lock:
            pod = chance.choice(self.pods)
            pod.askers += 1
        try:
            yield pod
        except OSError:
            # The log explains why the server ended.
            assert pod.server.process.poll() is None, pod.server.process.communicate()
            raise
        finally:
            with self.lock:
                pod.askers -= 1

    def change(self, how: str, chance: random.Random) -> None:
        number = chance.randrange(len(self.pods))
        with self.changing[number]:
            if how == "reload":
                self.pods[number].reload()
                return
            new = self.start(number, self.pods[number].next_model)
            with self.lock:
                old, self.pods[number] = self.pods[number], new
            wait_until(lambda: not old.askers, "no thread uses the old server")
            self.end(old)

    def end(self, pod: Pod) -> None:
        self.metrics.append(fetch(pod.server, METRICS).body.decode())
        pod.server.stop()
        assert pod.server.process.returncode == 0

    def total(self, name: str, **labels: str) -> float:
        return sum(metric_sum(text, name, **labels) for text in self.metrics)


def run_steps(work: Callable[[str, random.Random], None], **steps: int) -> None:
    """Lets each client do the given number of steps of each kind in a random order. Some clients also change a model."""

    def client(seed: int) -> None:
        chance = random.Random(seed)
        own_steps = [step for step, times in steps.items() for _ in range(times)] + list(CHANGES[seed : seed + 1])
        chance.shuffle(own_steps)
        for step in own_steps:
            work(step, chance)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for future in [pool.submit(client, seed) for seed in range(CLIENTS)]:
            future.result(120)


def forget(redis: RedisServer, chance: random.Random) -> None:
    """Lets Redis lose half of its entries, like an eviction."""
    keys = redis.execute("KEYS", "*")
    if keys:
        redis.execute("DEL", *chance.sample(keys, (len(keys) + 1) // 2))


def comparable(response: HttpResponse) -> tuple[int, bytes, dict[str, str]]:
    return response.status, response.body, {name: value for name, value in response.headers.items() if name not in OWN_FIELDS}


def any_prediction(chance: random.Random) -> bytes:
    """Returns a random request to the web-single routes. Many of the few thousand possible requests share rows."""
    fields = ["X-Request-ID: same"]
    if chance.random() < 0.2:
        fields.append(f"Cache-Control: {chance.choice(('no-cache', 'no-store', 'max-age=0'))}")
    if chance.random() < 0.1:
        return http_request("GET", chance.choice(("/metadata", "/label", "/predict/test", "/predict/test/label")), None, *fields)
    many = chance.random() < 0.4
    rows = [chance.choice(ROWS if chance.random() < 0.9 else ODD_ROWS) for _ in range(chance.choice((2, 3, 9)) if many else 1)]
    path = "/predict/batch" if many else chance.choice(("/predict", "/predict/label", "/predict/proba", "/predict/batch"))
    return http_request("POST", path, {"data": rows}, *fields)


def test_in_any_order_of_events_predictions_are_those_of_the_servers_model_without_a_cache(run, shared_redis, tmp_path):
    # One cache has room for three rows. The other cache's entries expire between two clears.
    own = ({"IRIS_CACHE_BYTES": "1024"}, {"IRIS_CACHE_SECONDS": "0.03"})
    common = {"IRIS_CACHE_REDIS_URL": shared_redis.url}
    plain = {model: run("--role", "web_single", "--model-dir", str(model)) for model in MODELS}
    pods = Pods(
        tmp_path,
        lambda number, *words: run("--role", "prediction_cache", *words, **common, **own[number]),
        2,
        2,
    )
    counts: Counter[str] = Counter()

    @cache
    def expected(model: Path, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        return comparable(fetch(plain[model], data))

    def work(step: str, chance: random.Random) -> None:
        match step:
            case "ask":
                data = any_prediction(chance)
                with pods.any(chance) as pod:
                    before = pod.models
                    response = fetch(pod.server, data)
                    models = before | pod.models
                assert comparable(response) in [expected(model, data) for model in models], (data, response, models)
                result = response.headers.get("cache-status", "")
                counts.update(
                    word for word in ("shared; hit", "wsgi; hit", "fwd=miss", "fwd=partial", "fwd=request") if word in result
                )
            case "clear":
                with pods.any(chance) as pod:
                    # The clear did not reach Redis, because the machine was busy.
                    assert fetch(pod.server, http_request("DELETE", "/cache")).status in (200, 503)
            case "clear_by_command":
                with pods.any(chance) as pod:
                    assert main(["clear", "--port", str(pod.server.port)]) in (0, 1)
            case "forget":
                forget(shared_redis, chance)
            case "replace" | "reload":
                pods.change(step, chance)

    run_steps(work, ask=150, clear=2, clear_by_command=2, forget=2)
    for pod in pods.pods:
        pods.end(pod)
    assert len(counts) == 5, counts
    for reason in ("size", "expired"):
        assert pods.total("prediction_cache_evictions_total", reason=reason) > 0


class Told(NamedTuple):
    """Response about an item, from a server with one of these models."""

    kind: str
    item_id: str
    version: int
    answer: HttpResponse
    models: frozenset[Path]


class Written(NamedTuple):
    """Acknowledged write, with an upper bound of its time (monotonic)."""

    at: float
    version: int
    pod: Pod


def test_in_any_order_of_events_items_are_those_of_the_database_and_predictions_those_of_the_servers_model(
    run, shared_redis, tmp_path
):
    own = ({"IRIS_ITEMS_BYTES": "4096"}, {"IRIS_ITEMS_SECONDS": "0.4"})
    common = {"IRIS_CACHE_REDIS_URL": shared_redis.url, "IRIS_CACHE": "on"}
    common |= {"IRIS_STATE_DIR": str(tmp_path)}
    role = "iris_wsgi.patterns.data_cache.role"
    constants: list[dict[str, object]] = [{f"{role}.CHECK_SECONDS": BOUND_SECONDS} for _ in own]
    constants[1][f"{role}.MISSING_SECONDS"] = 0.2
    pods = Pods(
        tmp_path,
        lambda number, *words: run("--role", "data_cache", *words, constants=constants[number], **common, **own[number]),
        2,
        2,
    )
    names = [f"{i:04d}" for i in range(6)] + [f"new-{i}" for i in range(6)] + ["never-there"]
    counts: Counter[str] = Counter()
    rows: dict[tuple[str, int], list[float]] = {}
    written: dict[str, list[Written]] = {name: [] for name in names}
    result: list[Told] = []
    for name in names[:6]:
        item = fetch(pods.pods[0].server, http_request("GET", f"/items/{name}")).json()
        rows[name, item["version"]] = item["data"][0]
        written[name].append(Written(time.monotonic(), 1, pods.pods[0]))

    def read_item(kind: str, chance: random.Random) -> None:
        name, fields = chance.choice(names), [] if chance.random() < 0.9 else ["Cache-Control: no-cache"]
        data = http_request("GET", f"/items/{name}{'/prediction' if kind == 'prediction' else ''}", None, *fields)
        with pods.any(chance) as pod:
            began, before, models = time.monotonic(), list(written[name]), pod.models
            response = fetch(pod.server, data)
            models |= pod.models
        status = response.headers["cache-status"]
        counts.update(
            word for word in ("wsgi; hit", "detail=redis", "detail=database", "negative", "fwd=request") if word in status
        )
        if response.status == 503:
            # The disk of a busy machine was too slow.
            return
        at_once = fields and "stale" not in status
        possible_predictions = [
            element.version
            for element in before
            if at_once or element.pod is pod or ("stale" not in status and element.at <= began - BOUND_SECONDS)
        ]
        version = response.json()["version"] if response.status == 200 else 0
        assert response.status == (200 if version else 404) and version >= max(possible_predictions, default=0), (
            response,
            possible_predictions,
        )
        if version:
            result.append(Told(kind, name, version, response, models))

    def put(chance: random.Random) -> None:
        name, row = chance.choice(names[:-1]), chance.choice(ROWS)
        with pods.any(chance) as pod:
            response = fetch(pod.server, http_request("PUT", f"/items/{name}", {"data": [row]}))
            if response.status != 503:
                version = response.json()["version"]
                assert (name, version) not in rows
                rows[name, version] = row
                written[name].append(Written(time.monotonic(), version, pod))
                result.append(Told("item", name, version, response, pod.models))

    def work(step: str, chance: random.Random) -> None:
        match step:
            case "item" | "prediction":
                read_item(step, chance)
            case "put":
                put(chance)
            case "forget":
                forget(shared_redis, chance)
            case "replace" | "reload":
                pods.change(step, chance)

    run_steps(work, item=50, prediction=100, put=20, forget=2)
    responses, digests = {}, {}
    for folder in MODELS:
        model, _ = load_model(folder)
        predict = predictor(lambda rows, _, model=model: model.predict(rows))
        responses[folder], digests[folder] = ItemResponses(model.schema, Encoder(model.outputs), predict), model.digest

    @cache
    def expected(kind: str, folder: Path, item_id: str, version: int, row: tuple[float, ...]) -> tuple[bytes, str | None]:
        expected_probabilities, packed = responses[folder], np.array(row, "<f4").tobytes()
        if kind == "item":
            return expected_probabilities.item(item_id, version, packed), None
        return expected_probabilities.prediction(item_id, version, packed, 0), digests[folder]

    for kind, item_id, version, response, models in result:
        # A write that was refused with 503 may have been stored.
        possible = [rows[item_id, version]] if (item_id, version) in rows else ROWS
        among = {expected(kind, folder, item_id, version, tuple(row)) for folder in models for row in possible}
        assert (response.body, response.headers.get("x-model-digest")) in among, (kind, item_id, version, response, models)
    for pod in pods.pods:
        pods.end(pod)
    assert len(counts) == 5, counts
    assert pods.total("item_cache_evictions_total") > 0
