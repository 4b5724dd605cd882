"""Stand-in for the API server of a cluster, which kubectl itself calls. Pods of a Deployment become ready one by one.

CI cannot install a real API server. The stand-in stores objects, merges patches, and does only what the release scripts need.
"""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
# Plural names and short names of the kinds, by group and version.
KINDS = {
    "v1": {"Namespace": ("namespaces", "ns"), "Service": ("services", "svc")},
    "apps/v1": {"Deployment": ("deployments", "deploy")},
    "autoscaling/v2": {"HorizontalPodAutoscaler": ("horizontalpodautoscalers", "hpa")},
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def merge(target: Any, patch: Any) -> Any:
    """Returns the target with a merge patch. Items of lists with names are merged by name, as in a strategic merge patch."""
    if isinstance(target, list) and isinstance(patch, list) and all("name" in item for item in target + patch):
        by_name = {item["name"]: item for item in target}
        return list((by_name | {item["name"]: merge(by_name.get(item["name"]), item) for item in patch}).values())
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif not key.startswith("$"):
            result[key] = merge(result.get(key), value)
    return result


class Cluster:
    """Objects of one namespace. Pods with an image in `broken` never become ready, and at most `room` pods of a Deployment do."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[tuple[str, str], Object] = {}
        self.broken: set[str] = set()
        self.room = 100
        self.events: list[tuple[str, ...]] = []
        # Kinds whose lists the server does not give out.
        self.forbidden: set[str] = set()
        # Called with the cluster each time that a pod becomes ready.
        self.on_ready = lambda cluster: None
        self.version = 1

    def apply(self, *objects: Object) -> None:
        for item in objects:
            if any(item["kind"] in kinds for kinds in KINDS.values()):
                self.put(copy.deepcopy(item))

    def get(self, kind: str, name: str) -> Object:
        return self.objects[kind, name]

    def put(self, item: Object) -> Object:
        with self.lock:
            self.version += 1
            known = self.objects.get((item["kind"], item["metadata"]["name"]))
            item["metadata"]["resourceVersion"] = str(self.version)
            if item["kind"] == "Deployment":
                self.reconcile(item, known)
            self.objects[item["kind"], item["metadata"]["name"]] = item
            return item

    def reconcile(self, item: Object, known: Object | None) -> None:
        """Starts a rollout when the template changes, as the controller of Deployments does."""
        item["spec"].setdefault("replicas", 1)
        status = item.setdefault("status", {"updatedReplicas": 0, "availableReplicas": 0, "replicas": 0})
        item["metadata"]["generation"] = status["observedGeneration"] = self.version
        if known is None or known["spec"]["template"] != item["spec"]["template"]:
            status["updatedReplicas"] = status["availableReplicas"] = 0
        for key in ("updatedReplicas", "availableReplicas"):
            status[key] = min(status[key], item["spec"]["replicas"])
        status["replicas"] = max(status["updatedReplicas"], 1)
        status.pop("conditions", None)

    def step(self, name: str) -> bool:
        """Makes one more pod of a Deployment ready. Returns whether one became ready."""
        with self.lock:
            item = self.objects["Deployment", name]
            ready, wanted = item["status"]["availableReplicas"], item["spec"]["replicas"]
            image = item["spec"]["template"]["spec"]["containers"][0]["image"]
            if image in self.broken:
                item["status"]["conditions"] = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
                return False
            if ready >= min(wanted, self.room):
                return False
            item["status"] |= dict.fromkeys(("updatedReplicas", "availableReplicas", "replicas"), ready + 1)
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            self.events.append(("ready", name, str(ready + 1)))
        self.on_ready(self)
        return True

    def delete(self, kind: str, name: str) -> Object:
        with self.lock:
            return self.objects.pop((kind, name))


def api_resources(group_version: str) -> Object:
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": kind != "Namespace",
            "shortNames": [short],
            "verbs": VERBS,
        }
        for kind, (plural, short) in KINDS[group_version].items()
    ]
    if group_version == "apps/v1":
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        resources.append(scale | {"name": "deployments/scale", "namespaced": True, "verbs": ["get", "patch", "update"]})
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}


def discovery(path: str) -> Object | None:
    groups = [version.partition("/")[::2] for version in KINDS if "/" in version]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        found = [{"groupVersion": f"{group}/{version}", "version": version, "name": group} for group, version in groups]
        return {
            "kind": "APIGroupList",
            "groups": [{"name": item["name"], "versions": [item], "preferredVersion": item} for item in found],
        }
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0"}
    if path.startswith("/openapi/v3"):
        return open_api(path.removeprefix("/openapi/v3"))
    version = path.removeprefix("/apis/").removeprefix("/api/")
    return api_resources(version) if version in KINDS else None


def open_api(path: str) -> Object:
    """Returns the OpenAPI documents: they state that the server itself validates fields, so kubectl needs no schemas."""
    if not path:
        return {"paths": {path_of(version): {"serverRelativeURL": f"/openapi/v3/{path_of(version)}"} for version in KINDS}}
    group, _, version = path.strip("/").removeprefix("apis/").removeprefix("api/").rpartition("/")
    operations = {
        f"/{path.strip('/')}/{plural}/{{name}}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                "responses": {},
            }
        }
        for kind, (plural, _) in KINDS[f"{group}/{version}".strip("/")].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "test", "version": "1"}, "paths": operations}


def path_of(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


class Handler(BaseHTTPRequestHandler):
    """Requests of kubectl."""

    cluster: Cluster

    def log_message(self, *arguments: object) -> None:
        """Writes no log."""

    def send(self, document: Object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self) -> None:
        self.send(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
                "message": "not found",
            },
            404,
        )

    def target(self) -> tuple[str, str, str, str, dict[str, list[str]]]:
        """Returns version, kind, name, subresource, and query. The name of a list is empty."""
        url = urlsplit(self.path)
        words = url.path.strip("/").split("/")
        version, rest = ("v1", words[2:]) if words[0] == "api" else ("/".join(words[1:3]), words[3:])
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            rest = rest[2:]
        plurals = {plural: kind for kind, (plural, _) in KINDS.get(version, {}).items()}
        name, subresource = [*rest[1:], "", ""][:2]
        return version, plurals.get(rest[0], "") if rest else "", name, subresource, parse_qs(url.query)

    def do_GET(self) -> None:
        if document := discovery(urlsplit(self.path).path):
            self.send(document)
            return
        version, kind, name, subresource, query = self.target()
        if not kind:
            self.missing()
        elif name:
            item = self.cluster.objects.get((kind, name))
            self.send(scale_of(item) if subresource else item) if item else self.missing()
        elif "watch" in query:
            self.watch(query["fieldSelector"][0].removeprefix("metadata.name="))
        else:
            if kind in self.cluster.forbidden:
                self.send({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "message": "forbidden"}, 403)
                return
            items = [item for (its_kind, _), item in self.cluster.objects.items() if its_kind == kind and matches(item, query)]
            metadata = {"resourceVersion": str(self.cluster.version)}
            self.send({"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": items})

    def watch(self, name: str) -> None:
        """Sends an event for each pod that becomes ready, and for the end of progress. Then waits until the client leaves."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        progress = True
        while progress:
            progress = self.cluster.step(name)
            event = {"type": "MODIFIED", "object": self.cluster.get("Deployment", name)}
            self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()
        self.connection.recv(1)

    def body(self) -> Any:
        return yaml.safe_load(self.rfile.read(int(self.headers["Content-Length"])))

    def do_PATCH(self) -> None:
        _, kind, name, subresource, _ = self.target()
        item = self.cluster.objects.get((kind, name))
        if item is None:
            self.missing()
            return
        patch = self.body()
        self.cluster.events.append(("patch", name, json.dumps(patch)))
        item = self.cluster.put(merge(copy.deepcopy(item), patch))
        self.send(scale_of(item) if subresource else item)

    def do_POST(self) -> None:
        self.send(self.cluster.put(self.body()), 201)

    def do_DELETE(self) -> None:
        _, kind, name, _, _ = self.target()
        self.cluster.events.append(("delete", name))
        self.send(self.cluster.delete(kind, name))


def scale_of(item: Object) -> Object:
    spec = {"replicas": item["spec"]["replicas"]}
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": item["metadata"], "spec": spec}


def matches(item: Object, query: dict[str, list[str]]) -> bool:
    wanted = [word.split("=") for text in query.get("labelSelector", ()) for word in text.split(",")]
    name = query.get("fieldSelector", [""])[0].removeprefix("metadata.name=")
    labels = item["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in wanted) and name in ("", item["metadata"]["name"])


@contextmanager
def running_cluster(folder: Path) -> Iterator[tuple[Cluster, dict[str, str]]]:
    """Yields a cluster, and the environment variables with which kubectl reaches it."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ClusterHandler", (Handler,), {"cluster": cluster}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    config = folder / "kubeconfig.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "kind": "Config",
                "apiVersion": "v1",
                "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": ""}}],
                "current-context": "test",
            }
        )
    )
    try:
        yield cluster, {"KUBECONFIG": str(config), "HOME": str(folder)}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
