"""The commands of manifests/README.md on an empty cluster, in their order: each finds what it needs."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from kustomize_overlays import KUSTOMIZATIONS, MANIFESTS, NESTED_KUSTOMIZATIONS, Object, containers, kustomize, pods, template_of
from optional_programs import require_program
from project import ROOT

README = (MANIFESTS / "README.md").read_text()
NAMESPACE = "model-in-image"
CREATE_SECRET = "kubectl -n model-in-image create secret generic"
KINDS = {
    "deployment": "Deployment",
    "hpa": "HorizontalPodAutoscaler",
    "pdb": "PodDisruptionBudget",
    "networkpolicy": "NetworkPolicy",
    "service": "Service",
    "cronjob": "CronJob",
    "job": "Job",
    "pod": "Pod",
    "configmap": "ConfigMap",
}
NAME = rf"(?P<kind>{'|'.join(KINDS)})[/ ](?P<name>[\w-]+)"
IMAGE = "model-in-image-pattern:v1.0"
# Files of the user. The text names each of them.
USER_FILES = {"tokens.txt", "url.txt", "ca.crt", "in.csv"}


class Missing(Exception):
    """A command needs something that no earlier command provides."""


class State:
    """Provisions of the commands so far: objects by kind and name, and files, images, and programs by a word each."""

    def __init__(self, overlays: dict[str, list[Object]]) -> None:
        self.overlays = overlays
        self.objects: dict[tuple[str, str], Object] = {}
        self.words: set[str] = set()

    def need(self, *words: str) -> None:
        if missing := set(words) - self.words:
            raise Missing(", ".join(sorted(missing)))

    def need_object(self, kind: str, name: str) -> Object:
        if (kind, name) not in self.objects:
            raise Missing(f"{kind} {name}")
        return self.objects[kind, name]

    def add(self, kind: str, name: str) -> None:
        self.objects[kind, name] = {"kind": kind, "metadata": {"name": name}}

    def apply(self, overlay: str) -> None:
        """Adds the objects of an overlay, whose pods need their images and Secrets. A CronJob needs them when it runs."""
        self.need("cluster")
        objects = self.overlays[overlay]
        self.objects |= {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}
        for template in pods([obj for obj in objects if obj["kind"] != "CronJob"]):
            self.need_parts_of(template)
        for service in [obj for obj in objects if obj["kind"] == "Service"]:
            self.need_pods_of(service)

    def need_parts_of(self, template: Object) -> None:
        for container in containers(template):
            if container["image"].startswith("model-in-image-pattern:"):
                self.need(f"loaded {container['image']}")
        for name in secret_names(template):
            self.need_object("Secret", name)

    def need_pods_of(self, service: Object) -> None:
        wanted = service["spec"]["selector"].items()
        if not any(
            wanted <= template_of(obj)["metadata"]["labels"].items()
            for obj in self.objects.values()
            if obj["kind"] == "Deployment"
        ):
            raise Missing(f"pods of {service['metadata']['name']}")

    def delete(self, kinds: set[str], label: tuple[str, str]) -> None:
        """Deletes the objects of these kinds with a label. There must be some."""
        key, value = label
        found = {k for k, obj in self.objects.items() if k[0] in kinds and obj["metadata"].get("labels", {}).get(key) == value}
        if not found:
            raise Missing(f"objects with {key}={value}")
        for k in found:
            del self.objects[k]


def secret_names(template: Object) -> Iterator[str]:
    """Yields the names of the Secrets without which the pod does not start."""
    for container in containers(template):
        for variable in container.get("env", ()):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"]
    for volume in template["spec"].get("volumes", ()):
        if "secret" in volume and not volume["secret"].get("optional"):
            yield volume["secret"]["secretName"]


def tag_of(words: str) -> str:
    """Returns the image that a command of bin/image names."""
    if tag := re.search(r"--tag (\S+)", words):
        return tag[1]
    target = re.search(r"--target (\w+)", words)
    return f"{IMAGE}-{target[1]}" if target else IMAGE


def build(state: State, words: str) -> None:
    if "--target edge" in words:
        state.need("dist/edge")
    state.words.add(f"built {tag_of(words)}")


def save(state: State, words: str) -> None:
    state.need(f"built {tag_of(words)}")
    target = re.search(r"--target (\w+)", words)
    file = f"dist/image-{target[1]}.tar" if target else "dist/image.tar"
    # A later image replaces the one in the file.
    state.words = {word for word in state.words if not word.startswith(f"{file} ")} | {file, f"{file} {tag_of(words)}"}


def load(state: State, file: str) -> None:
    state.need("cluster", file)
    state.words |= {f"loaded {word.removeprefix(f'{file} ')}" for word in state.words if word.startswith(f"{file} ")}


def namespaced(state: State, namespace: str, command: str) -> None:
    """Follows a kubectl command with -n."""
    state.need("cluster")
    state.need_object("Namespace", namespace)
    for pattern, follow in KUBECTL:
        if found := re.fullmatch(pattern, command):
            follow(state, found)
            return
    raise AssertionError(f"this test does not know the command: {command}")


def create_secret(state: State, found: re.Match[str]) -> None:
    files = set(re.findall(r"--from-file=(?:\w+=)?(\S+)", found["files"]))
    assert files <= USER_FILES and all(f"`{file}`" in README for file in files)
    if "| kubectl apply -f -" not in found["files"] and ("Secret", found["name"]) in state.objects:
        raise Missing(f"a name other than {found['name']}, which exists")
    state.add("Secret", found["name"])


def create_job(state: State, found: re.Match[str]) -> None:
    state.need_parts_of(template_of(state.need_object("CronJob", found["cronjob"])))
    state.add("Job", found["name"])


def create_config_map(state: State, found: re.Match[str]) -> None:
    assert (MANIFESTS.parent / found["file"]).exists()
    state.add("ConfigMap", found["name"])


def use(state: State, found: re.Match[str]) -> None:
    """Follows a command on an existing object."""
    state.need_object(KINDS[found["kind"]], found["name"])


def set_image(state: State, found: re.Match[str]) -> None:
    use(state, found)
    state.need(f"loaded {found['image']}")


def delete(state: State, found: re.Match[str]) -> None:
    if "--ignore-not-found" not in found["flags"]:
        use(state, found)
    state.objects.pop((KINDS[found["kind"]], found["name"]), None)


def delete_labeled(state: State, found: re.Match[str]) -> None:
    state.delete({KINDS[kind] for kind in found["kinds"].split(",")}, (found["key"], found["value"]))


def copy_file(state: State, found: re.Match[str]) -> None:
    state.need_object("Pod", found["pod"])
    assert found["into"] is None or found["into"] in USER_FILES


# Commands of kubectl in the namespace, and the functions that follow them.
KUBECTL = [
    (r"create secret generic (?P<name>\S+)(?P<files>.*)", create_secret),
    (r"create job (?P<name>\S+) --from=cronjob/(?P<cronjob>\S+)", create_job),
    (r"create configmap (?P<name>\S+) --from-file=(?P<file>\S+)", create_config_map),
    (rf"set image {NAME} '\*=(?P<image>\S+)'", set_image),
    (r"delete (?P<kinds>[\w,]+) -l (?P<key>\S+)=(?P<value>\S+)", delete_labeled),
    (rf"delete {NAME}(?P<flags>.*)", delete),
    (r"cp (?:(?P<into>\S+) )?(?P<pod>[\w-]+):\S+(?: \S+)?", copy_file),
    (rf"(?:rollout (?:status|undo)|label|patch|wait|logs|exec|port-forward) {NAME}(?: .*)?", use),
]


def switch(state: State, color: str) -> None:
    suffix = "" if color == "main" else f"-{color}"
    state.need_object("Deployment", f"model-in-image-deployment{suffix}")
    if color != "main":
        state.apply(f"release/to_{color}")


def promote(state: State) -> None:
    canary = state.need_object("Deployment", "model-in-image-deployment-canary")
    state.need_object("Deployment", "model-in-image-deployment")
    state.need_parts_of(canary["spec"]["template"])
    del state.objects["Deployment", "model-in-image-deployment-canary"]


def follow(state: State, line: str) -> None:
    """Follows one line of the document. Raises Missing if the command would fail, or its pods would not start."""
    if found := re.fullmatch(r"kubectl -n (\S+) (.*)", line):
        namespaced(state, found[1], found[2])
    elif found := re.fullmatch(r"kubectl apply -k manifests/(\S+?)( --dry-run=server)?", line):
        if found[2]:
            state.need_object("Namespace", NAMESPACE)
        else:
            state.apply(found[1])
    elif line == "kubectl apply -f manifests/base/namespace.yml":
        state.need("cluster")
        state.add("Namespace", NAMESPACE)
    elif found := re.fullmatch(r"kubectl create namespace (\S+) --dry-run=client -o yaml \| kubectl apply -f -", line):
        state.add("Namespace", found[1])
    elif found := re.fullmatch(r"manifests/release/switch (\w+)", line):
        switch(state, found[1])
    elif line == "manifests/release/promote":
        promote(state)
    elif found := re.fullmatch(r"minikube image load (\S+)", line):
        load(state, found[1])
    elif found := re.fullmatch(r"bin/image (build|save)( .*)?", line):
        {"build": build, "save": save}[found[1]](state, found[2] or "")
    elif line == "minikube start":
        state.words.add("cluster")
    elif line == "bin/edge build":
        state.words.add("dist/edge")
    elif line.startswith("curl ") and "minikube -n model-in-image service model-in-image-service" in line:
        state.need_object("Service", "model-in-image-service")
    else:
        assert line == "minikube addons enable metrics-server" or line.startswith("sed -i "), f"this test does not know: {line}"


class Line(NamedTuple):
    """Command, with the number of its block."""

    block: int
    text: str


def lines_of(document: str) -> list[Line]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [Line(number, text) for number, block in enumerate(blocks) for text in block.splitlines()]


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    require_program("kubectl")
    names = [name for name, document in KUSTOMIZATIONS.items() if document["kind"] == "Kustomization"]
    return {name: kustomize(MANIFESTS / name) for name in names if name not in NESTED_KUSTOMIZATIONS}


def run(document: str, overlays: dict[str, list[Object]]) -> None:
    state = State(overlays)
    for line in lines_of(document):
        try:
            follow(state, line.text)
        except Missing as missing:
            pytest.fail(f"{line.text}: nothing before it provides {missing}")


@pytest.mark.long
def test_every_command_finds_what_it_needs_from_the_commands_before_it(overlays):
    assert len(lines_of(README)) > 60
    run(README, overlays)


def test_the_commands_of_the_page_about_operations_find_what_they_need_too(overlays):
    lines = [line.text for line in lines_of((ROOT / "docs/operations.md").read_text())]
    ours = [line for line in lines if line.startswith(("bin/image ", "kubectl ", "minikube "))]
    assert "kubectl apply -k manifests/web_single" in ours
    run("```sh\n" + "\n".join(ours) + "\n```\n", overlays)


def test_a_block_that_creates_a_secret_first_makes_sure_of_the_namespace():
    blocks: dict[int, list[str]] = {}
    for line in lines_of(README):
        blocks.setdefault(line.block, []).append(line.text)
    found = [block for block in blocks.values() if any(" create secret " in line for line in block)]
    assert len(found) == 4
    assert {block[0] for block in found} == {"kubectl apply -f manifests/base/namespace.yml"}


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("minikube start\n", "minikube image load dist/image.tar: nothing before it provides cluster"),
        ("minikube image load dist/image.tar\n", "kubectl apply -k manifests/web_single: nothing before it provides loaded"),
        ("bin/image save --target full\n", "nothing before it provides dist/image-full.tar"),
        ("bin/edge build\n", "nothing before it provides dist/edge"),
        ("kubectl create namespace monitoring --dry-run=client -o yaml | kubectl apply -f -\n", "Namespace monitoring"),
        (
            f"{CREATE_SECRET} model-in-image-postgres --from-file=url=url.txt --from-file=ca.crt\n",
            "kubectl apply -k manifests/data_cache: nothing before it provides Secret model-in-image-postgres",
        ),
        (
            f"{CREATE_SECRET} model-in-image-database --from-file=url=url.txt\n",
            "--from=cronjob/model-in-image-batch-table: nothing before it provides Secret model-in-image-database",
        ),
        ("kubectl apply -k manifests/release/green\n", "Deployment model-in-image-deployment-green"),
        ("bin/image save --tag model-in-image-pattern:v1.1\n", "provides loaded model-in-image-pattern:v1.1"),
        ("kubectl apply -k manifests/release/canary\n", "Deployment model-in-image-deployment-canary"),
    ],
)
def test_a_missing_command_is_found(overlays, removed, missing):
    assert removed in README
    with pytest.raises(pytest.fail.Exception, match=re.escape(missing)):
        run(README.replace(removed, ""), overlays)


def test_a_secret_before_its_namespace_is_found(overlays):
    state = State(overlays)
    state.words.add("cluster")
    with pytest.raises(Missing, match="Namespace model-in-image"):
        follow(state, f"{CREATE_SECRET} model-in-image-tokens --from-file=tokens=tokens.txt")
    with pytest.raises(Missing, match="Namespace model-in-image"):
        follow(state, "kubectl apply -k manifests/web_single --dry-run=server")
