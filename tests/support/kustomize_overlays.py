"""Overlays of the manifests as kubectl renders them, and the objects with our image."""

import base64
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml
from optional_programs import require_program
from project import ROOT

from iris_wsgi.settings import Settings, read_settings

MANIFESTS = ROOT / "manifests"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# Environment variables of the image. The build computes the values that contain other variables.
IMAGE_ENV, EDGE_IMAGE_ENV = (
    dict(re.findall(r"\b(IRIS_\w+)=([\w./]+)", part)) for part in DOCKERFILE.split("FROM release AS edge")
)
KUSTOMIZATIONS = {
    str(path.parent.relative_to(MANIFESTS)): yaml.safe_load(path.read_text())
    for path in sorted(MANIFESTS.rglob("kustomization.yml"))
}
# Parts of overlays that cannot be applied alone, because their objects belong to another kustomization.
NESTED_KUSTOMIZATIONS = {
    "jobs/worker",
    "backend",
    "prep_pred/pred",
    *(f"horizontal/{name}" for name in ("setosa", "versicolor", "virginica")),
}
OVERLAYS = [
    name for name, document in KUSTOMIZATIONS.items() if document["kind"] == "Kustomization" and name not in NESTED_KUSTOMIZATIONS
]
KUBERNETES = ("1.32", "1.33", "1.34", "1.35", "1.37")
# Component that another one replaces.
REPLACES = {"../jobs/managed_redis": "../jobs/redis"}
Object = dict


def kustomize(folder: Path) -> list[Object]:
    """Returns the objects that `kubectl apply -k` would send."""
    result = subprocess.run([require_program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return list(yaml.load_all(result.stdout, yaml.CSafeLoader))


def with_component(overlay: str, component: str, into: Path) -> Path:
    """Copies the manifests, activates the component in the copy, and returns the overlay's folder."""
    folder = Path(shutil.copytree(MANIFESTS, into / f"{overlay}-{Path(component).name}")) / overlay
    file = folder / "kustomization.yml"
    text = file.read_text().replace(f"  # - {component}\n", f"  - {component}\n")
    if component in REPLACES:
        line = f"  - {REPLACES[component]}\n"
        assert line in text
        text = text.replace(line, "")
    file.write_text(text)
    return folder


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [obj for obj in objects if obj["kind"] in kinds]


def name_of(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def selector(obj: Object) -> dict[str, str]:
    """Returns the labels with which an object selects pods."""
    spec = obj["spec"]
    if obj["kind"] == "Service":
        return spec["selector"]
    return (spec.get("podSelector") or spec["selector"])["matchLabels"]


def template_of(workload: Object) -> Object:
    """Returns the pod template of a workload, or the Pod itself."""
    if workload["kind"] == "Pod":
        return workload
    spec = workload["spec"]
    return spec["jobTemplate"]["spec"]["template"] if workload["kind"] == "CronJob" else spec["template"]


def pods(objects: list[Object]) -> list[Object]:
    """Returns the pod templates of all workloads."""
    return [template_of(workload) for workload in of_kind(objects, "Deployment", "CronJob", "Job", "Pod")]


def containers(template: Object, *groups: str) -> list[Object]:
    groups = groups or ("containers", "initContainers")
    return [container for group in groups for container in template["spec"].get(group, ())]


# Values of the Secrets that the user creates, by the names of Secret and key.
EXTERNAL_SECRETS = {
    ("model-in-image-redis", "url"): "rediss://user:password@redis.example:6380/0?ssl_ca_certs=/redis-ca/ca.crt",
    ("model-in-image-database", "url"): (
        "postgresql://user:password@database.example:5432/iris?sslmode=verify-full&sslrootcert=/database-ca/ca.crt"
    ),
    ("model-in-image-postgres", "url"): (
        "postgresql://user:password@host:5432/database?sslmode=verify-full&sslrootcert=/postgres-ca/ca.crt"
    ),
}
# Fields that a pod has and its template has not. The value is that of the last pod of an Indexed Job with four pods.
POD_FIELDS = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": "3"}


def secrets(objects: list[Object]) -> dict[tuple[str, str], str]:
    """Returns the values of the Secrets, by the names of Secret and key."""
    return {
        (secret["metadata"]["name"], key): base64.b64decode(value).decode()
        for secret in of_kind(objects, "Secret")
        for key, value in secret["data"].items()
    }


def environment_value(variable: Object, known: Mapping[tuple[str, str], str]) -> str:
    """Returns the value of an environment variable. `known` holds the values of the generated Secrets."""
    if "value" in variable:
        return variable["value"]
    if "fieldRef" in variable["valueFrom"]:
        return POD_FIELDS[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    reference = variable["valueFrom"]["secretKeyRef"]
    assert not reference.get("optional")
    # The name of a generated Secret ends with a hash. A name without one belongs to a Secret that the user creates.
    return {**EXTERNAL_SECRETS, **known}[reference["name"], reference["key"]]


def environment_of(container: Object, objects: list[Object] = ()) -> dict[str, str]:
    """Returns the environment variables of the image and of the container."""
    known = secrets(objects)
    return {**IMAGE_ENV, **{variable["name"]: environment_value(variable, known) for variable in container.get("env", ())}}


def settings_of(container: Object, objects: list[Object] = ()) -> Settings:
    return read_settings(environment_of(container, objects), {})


def image_name(container: Object) -> str:
    return container["image"].partition(":")[0]


def is_ours(template: Object) -> bool:
    """Returns whether the pods run our image, and not Redis or busybox."""
    names = {image_name(container) for container in containers(template)}
    assert len(names) == 1
    return names == {"model-in-image-pattern"}


def our_deployments(objects: list[Object]) -> list[Object]:
    return [deployment for deployment in of_kind(objects, "Deployment") if is_ours(deployment["spec"]["template"])]


def our_pods(objects: list[Object]) -> list[Object]:
    """Returns the pod templates of our servers, job workers, and batch jobs."""
    return [template for template in pods(objects) if is_ours(template)]


def our_servers(objects: list[Object]) -> list[Object]:
    """Returns the pod templates of our servers. They listen on a port and have probes."""
    return [deployment["spec"]["template"] for deployment in our_deployments(objects)]
