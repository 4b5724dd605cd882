"""Manifests as kubectl renders them, and what of them is ours."""

import base64
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml
from optional_programs import require_program
from project import ROOT

from iris_wsgi.settings import Settings, read_settings

MANIFESTS = ROOT / "manifests"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# What the image sets; what is not plain text there is known only when it is built.
IMAGE_ENV, EDGE_IMAGE_ENV = (
    dict(re.findall(r"\b(IRIS_\w+)=([\w./]+)", part)) for part in DOCKERFILE.split("FROM release AS edge")
)
KUSTOMIZATIONS = {
    str(path.parent.relative_to(MANIFESTS)): yaml.safe_load(path.read_text())
    for path in sorted(MANIFESTS.rglob("kustomization.yml"))
}
# Parts of overlays that cannot be applied alone: objects beside those of the base.
NESTED_KUSTOMIZATIONS = {
    "jobs/worker",
    "backend",
    "prep_pred/pred",
    *(f"horizontal/{name}" for name in ("setosa", "versicolor", "virginica")),
}
OVERLAYS = [
    name for name, told in KUSTOMIZATIONS.items() if told["kind"] == "Kustomization" and name not in NESTED_KUSTOMIZATIONS
]
Object = dict


def kustomize(folder: Path) -> list[Object]:
    told = subprocess.run([require_program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    return list(yaml.load_all(told.stdout, yaml.CSafeLoader))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def template_of(one: Object) -> Object:
    """The pods of an object with pods; of a Pod itself."""
    spec = one["spec"]
    return (
        one if one["kind"] == "Pod" else spec["jobTemplate"]["spec"]["template"] if one["kind"] == "CronJob" else spec["template"]
    )


def pods(objects: list[Object]) -> list[Object]:
    """Pod templates."""
    return [template_of(one) for one in of_kind(objects, "Deployment", "CronJob", "Job", "Pod")]


def containers(template: Object, *groups: str) -> list[Object]:
    return [one for group in groups or ("containers", "initContainers") for one in template["spec"].get(group, ())]


# What a Secret would hold that is not part of the render, by the names of Secret and key.
EXTERNAL_SECRETS = {
    ("model-in-image-redis", "url"): "rediss://user:password@redis.example:6380/0?ssl_ca_certs=/redis-ca/ca.crt",
    ("model-in-image-database", "url"): (
        "postgresql://user:password@database.example:5432/iris?sslmode=verify-full&sslrootcert=/database-ca/ca.crt"
    ),
    ("model-in-image-postgres", "url"): (
        "postgresql://user:password@host:5432/database?sslmode=verify-full&sslrootcert=/postgres-ca/ca.crt"
    ),
}
# What a pod may have that its template has not: here the last one of an Indexed Job with four.
POD_FIELDS = {"metadata.annotations['batch.kubernetes.io/job-completion-index']": "3"}


def secrets(objects: list[Object]) -> dict[tuple[str, str], str]:
    """What is in the Secrets of a render, by the names of Secret and key."""
    return {
        (one["metadata"]["name"], key): base64.b64decode(value).decode()
        for one in of_kind(objects, "Secret")
        for key, value in one["data"].items()
    }


def environment_value(told: Object, known: Mapping[tuple[str, str], str]) -> str:
    """The value of an environment variable; one of the `known` Secrets may hold it."""
    if "value" in told:
        return told["value"]
    if "fieldRef" in told["valueFrom"]:
        return POD_FIELDS[told["valueFrom"]["fieldRef"]["fieldPath"]]
    place = told["valueFrom"]["secretKeyRef"]
    assert not place.get("optional")
    # The names of generated Secrets end in a hash, so this one is made by hand.
    return {**EXTERNAL_SECRETS, **known}[place["name"], place["key"]]


def environment_of(container: Object, objects: list[Object] = ()) -> dict[str, str]:
    """The image's variables and the container's own."""
    known = secrets(objects)
    return {**IMAGE_ENV, **{one["name"]: environment_value(one, known) for one in container.get("env", ())}}


def settings_of(container: Object, objects: list[Object] = ()) -> Settings:
    return read_settings(environment_of(container, objects), {})


def image_name(container: Object) -> str:
    return container["image"].partition(":")[0]


def is_ours(template: Object) -> bool:
    """Whether the pods run our image; of another one, Redis or busybox, other things are known and wanted."""
    names = {image_name(one) for one in containers(template)}
    assert len(names) == 1
    return names == {"model-in-image-pattern"}


def our_deployments(objects: list[Object]) -> list[Object]:
    return [one for one in of_kind(objects, "Deployment") if is_ours(one["spec"]["template"])]


def our_pods(objects: list[Object]) -> list[Object]:
    """Servers, workers and batches."""
    return [one for one in pods(objects) if is_ours(one)]


def our_servers(objects: list[Object]) -> list[Object]:
    """Those that listen, and so have probes, a drain and traffic."""
    return [one["spec"]["template"] for one in our_deployments(objects)]
