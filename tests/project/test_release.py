"""The scripts of manifests/release: kubectl itself runs them against a stand-in for the API server."""

import copy
import os
import subprocess
from collections.abc import Iterator

import pytest
from cluster_api import Cluster, Object, running_cluster
from kustomize_overlays import MANIFESTS, kustomize
from optional_programs import require_program

DEPLOYMENT = "model-in-image-deployment"
HPA = "model-in-image-hpa"
SERVICE = "model-in-image-service"
INSTANCE = "app.kubernetes.io/instance"


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    require_program("kubectl")
    names = ("web_single", "release/blue", "release/green", "release/canary", "release/to_blue")
    return {name: kustomize(MANIFESTS / name) for name in names}


class ReleaseCluster:
    """Cluster with some overlays, and the scripts that change it."""

    def __init__(self, cluster: Cluster, environment: dict[str, str], overlays: dict[str, list[Object]]) -> None:
        self.cluster, self.environment, self.overlays = cluster, environment, overlays

    def apply(self, *names: str) -> None:
        for name in names:
            self.cluster.apply(*self.overlays[name])

    def run(self, script: str, *words: str, timeout: str = "60s") -> subprocess.CompletedProcess[str]:
        self.cluster.events.clear()
        environment = os.environ | self.environment | {"SWITCH_TIMEOUT": timeout}
        command = [str(MANIFESTS / "release" / script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def resize(self, name: str, replicas: int, **hpa: int) -> None:
        """Sets the number of pods, which are all ready, and optionally fields of the autoscaler of the Deployment."""
        item = copy.deepcopy(self.cluster.get("Deployment", name))
        item["spec"]["replicas"] = replicas
        item["status"] |= dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), replicas)
        self.cluster.put(item)
        if hpa:
            autoscaler = copy.deepcopy(self.cluster.get("HorizontalPodAutoscaler", name.replace(DEPLOYMENT, HPA)))
            autoscaler["spec"] |= hpa
            self.cluster.put(autoscaler)

    def leads_to(self) -> str:
        return self.cluster.get("Service", SERVICE)["spec"]["selector"][INSTANCE]

    def ready(self, name: str) -> int:
        return self.cluster.get("Deployment", name)["status"]["availableReplicas"]

    def range_of(self, name: str) -> tuple[int, int]:
        spec = self.cluster.get("HorizontalPodAutoscaler", name)["spec"]
        return spec["minReplicas"], spec["maxReplicas"]

    def image_of(self, name: str) -> str:
        return self.cluster.get("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"]

    def position(self, *event: str) -> int:
        """Returns the position of the first event with these words."""
        return next(i for i, words in enumerate(self.cluster.events) if words[: len(event)] == event)


@pytest.fixture
def release(overlays, tmp_path) -> Iterator[ReleaseCluster]:
    """A cluster without objects."""
    with running_cluster(tmp_path) as (cluster, environment):
        yield ReleaseCluster(cluster, environment, overlays)


@pytest.fixture
def colors(release) -> ReleaseCluster:
    """A cluster in which blue has all the traffic and 8 pods, and green is new."""
    release.apply("release/blue", "release/green", "release/to_blue")
    release.resize(f"{DEPLOYMENT}-blue", 8)
    return release


def test_a_color_is_as_large_as_the_current_one_and_ready_before_the_service_leads_to_it(colors):
    result = colors.run("switch", "green")
    assert result.returncode == 0, result.stderr
    assert colors.leads_to() == "green"
    assert colors.ready(f"{DEPLOYMENT}-green") == 8
    assert colors.position("ready", f"{DEPLOYMENT}-green", "8") < colors.position("patch", SERVICE)
    # The autoscaler may not remove the pods before they have traffic.
    assert colors.position("patch", f"{HPA}-green") < colors.position("patch", f"{DEPLOYMENT}-green")
    assert colors.range_of(f"{HPA}-green") == (8, 10)


@pytest.mark.long
def test_pods_that_the_current_color_gets_during_the_wait_count_too(colors):
    colors.cluster.on_ready = lambda cluster: colors.resize(f"{DEPLOYMENT}-blue", 9)
    result = colors.run("switch", "green")
    assert result.returncode == 0, result.stderr
    assert colors.ready(f"{DEPLOYMENT}-green") == 9
    assert colors.position("ready", f"{DEPLOYMENT}-green", "9") < colors.position("patch", SERVICE)


@pytest.mark.long
def test_a_color_gets_more_pods_than_its_autoscaler_allows_if_the_current_one_has_them(colors):
    colors.resize(f"{DEPLOYMENT}-blue", 15, maxReplicas=20)
    assert colors.run("switch", "green").returncode == 0
    assert (colors.ready(f"{DEPLOYMENT}-green"), colors.range_of(f"{HPA}-green")) == (15, (15, 15))


@pytest.mark.long
def test_nothing_is_switched_while_a_pod_of_the_color_is_not_ready(colors):
    colors.cluster.room = 5
    result = colors.run("switch", "green", timeout="1s")
    assert (result.returncode, colors.leads_to()) == (1, "blue")
    assert "green has not 8 ready pods after 1s; nothing was switched" in result.stderr
    assert colors.range_of(f"{HPA}-green") == (2, 10)
    # It can be run again once there is room.
    colors.cluster.room = 100
    assert colors.run("switch", "green").returncode == 0
    assert (colors.leads_to(), colors.ready(f"{DEPLOYMENT}-green")) == ("green", 8)


@pytest.mark.long
def test_nothing_is_switched_if_the_pods_cannot_be_counted(colors):
    colors.cluster.forbidden.add("Deployment")
    assert colors.run("switch", "green").returncode == 1
    assert (colors.leads_to(), colors.cluster.events) == ("blue", [])


@pytest.mark.long
def test_the_switch_goes_back_to_a_color_that_has_shrunk_since(colors):
    assert colors.run("switch", "green").returncode == 0
    colors.resize(f"{DEPLOYMENT}-blue", 2)
    result = colors.run("switch", "blue")
    assert result.returncode == 0, result.stderr
    assert (colors.leads_to(), colors.ready(f"{DEPLOYMENT}-blue")) == ("blue", 8)
    assert colors.position("ready", f"{DEPLOYMENT}-blue", "8") < colors.position("patch", SERVICE)
    # Without traffic green needs no more pods than before.
    assert (colors.range_of(f"{HPA}-blue"), colors.range_of(f"{HPA}-green")) == ((8, 10), (2, 10))


@pytest.mark.long
def test_the_same_command_again_gives_the_autoscaler_its_own_range(colors):
    colors.resize(f"{DEPLOYMENT}-green", 3, minReplicas=3)
    assert colors.run("switch", "green").returncode == 0
    assert colors.range_of(f"{HPA}-green") == (8, 10)
    assert colors.run("switch", "green").returncode == 0
    assert (colors.leads_to(), colors.range_of(f"{HPA}-green")) == ("green", (3, 10))


@pytest.mark.long
def test_a_cluster_with_web_single_and_a_canary_switches_to_blue_and_back(release):
    release.apply("web_single", "release/canary", "release/blue")
    release.resize(DEPLOYMENT, 4)
    assert release.run("switch", "blue").returncode == 0
    assert (release.leads_to(), release.ready(f"{DEPLOYMENT}-blue")) == ("blue", 5)
    assert release.run("switch", "main").returncode == 0
    assert (release.leads_to(), release.ready(DEPLOYMENT)) == ("main", 5)


@pytest.mark.long
def test_the_first_switch_makes_the_service_after_at_least_as_many_pods_as_the_autoscaler_wants(release):
    release.apply("release/blue")
    result = release.run("switch", "blue")
    assert result.returncode == 0, result.stderr
    assert (release.leads_to(), release.ready(f"{DEPLOYMENT}-blue")) == ("blue", 2)


@pytest.mark.long
def test_a_color_without_an_autoscaler_is_resized_too(colors):
    colors.cluster.delete("HorizontalPodAutoscaler", f"{HPA}-green")
    assert colors.run("switch", "green").returncode == 0
    assert (colors.leads_to(), colors.ready(f"{DEPLOYMENT}-green")) == ("green", 8)


@pytest.mark.parametrize(
    ("words", "status", "message"), [(["red"], 2, "usage: "), ([], 2, "usage: "), (["main"], 1, "no pods of main")]
)
def test_a_color_that_does_not_exist_is_refused(colors, words, status, message):
    result = colors.run("switch", *words)
    assert (result.returncode, colors.leads_to(), colors.cluster.events) == (status, "blue", [])
    assert message in result.stderr


@pytest.fixture
def canary(release) -> ReleaseCluster:
    """A cluster with 8 stable pods and a canary."""
    release.apply("web_single", "release/canary")
    release.resize(DEPLOYMENT, 8)
    return release


@pytest.mark.long
def test_a_promotion_replaces_the_pod_of_the_canary_first_and_removes_the_canary_last(canary):
    image = canary.image_of(f"{DEPLOYMENT}-canary")
    assert canary.image_of(DEPLOYMENT) != image
    result = canary.run("promote")
    assert result.returncode == 0, result.stderr
    assert (canary.image_of(DEPLOYMENT), canary.ready(DEPLOYMENT)) == (image, 9)
    patches = [words[2] for words in canary.cluster.events if words[:2] == ("patch", DEPLOYMENT)]
    assert patches[0] == '{"spec": {"replicas": 9}}' and image in patches[1] and len(patches) == 2
    assert canary.position("ready", DEPLOYMENT, "9") < canary.position("patch", DEPLOYMENT, patches[1])
    assert canary.cluster.events[-2][:2] == ("delete", f"{DEPLOYMENT}-canary")
    assert canary.cluster.events[-1][:2] == ("patch", HPA)
    assert canary.range_of(HPA) == (2, 10)
    assert ("Deployment", f"{DEPLOYMENT}-canary") not in canary.cluster.objects


@pytest.mark.long
def test_an_image_that_does_not_become_ready_is_not_promoted_and_the_canary_stays(canary):
    old, new = (canary.image_of(name) for name in (DEPLOYMENT, f"{DEPLOYMENT}-canary"))
    canary.cluster.broken.add(new)
    result = canary.run("promote")
    assert result.returncode == 1
    assert f"the image is {old} again" in result.stderr
    assert (canary.image_of(DEPLOYMENT), canary.ready(DEPLOYMENT), canary.range_of(HPA)) == (old, 9, (2, 10))
    assert ("Deployment", f"{DEPLOYMENT}-canary") in canary.cluster.objects


@pytest.mark.long
def test_nothing_is_promoted_without_room_for_the_pod_of_the_canary(canary):
    old = canary.image_of(DEPLOYMENT)
    canary.cluster.room = 8
    assert canary.run("promote", timeout="1s").returncode == 1
    assert (canary.image_of(DEPLOYMENT), canary.range_of(HPA)) == (old, (2, 10))
    assert ("Deployment", f"{DEPLOYMENT}-canary") in canary.cluster.objects


def test_nothing_is_promoted_without_a_canary(release):
    release.apply("web_single")
    result = release.run("promote")
    assert (result.returncode, release.cluster.events) == (1, [])
    assert "there is no canary" in result.stderr
