"""The chart: compared with the overlays object by object, and rendered with each of its values."""

import json
import re
import shlex
import tarfile
from itertools import pairwise
from typing import Any

import pytest
import yaml
from custom_resources import errors_in, is_custom
from helm_charts import (
    CHART,
    ChartError,
    Release,
    lint_chart,
    package_chart,
    render_files,
    render_release,
    render_releases,
)
from kustomize_overlays import (
    KUBERNETES,
    MANIFESTS,
    Object,
    containers,
    kustomize,
    name_of,
    of_kind,
    our_deployments,
    pods,
    selector,
    settings_of,
    with_component,
)
from pod_security import violations

from iris_wsgi.roles import ROLES

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CHART_ROLES = SCHEMA["properties"]["role"]["enum"]
# Overlay of each role, if its name is another one.
OVERLAY_OF = {"prep": "prep_pred", "gateway": "horizontal"}
# Overlays with one of their components that are off, and the values with the same objects.
WITH_COMPONENT: dict[tuple[str, str], dict[str, Any]] = {
    ("asynchronous", "../jobs/managed_redis"): {"role": "asynchronous"},
    ("sync_async", "../jobs/managed_redis"): {"role": "sync_async"},
    ("web_single", "../token"): {"role": "web_single", "token": {"enabled": True}},
    ("prep_pred", "../token"): {"role": "prep", "token": {"enabled": True}},
    ("horizontal", "../token"): {"role": "gateway", "token": {"enabled": True}},
    ("web_single", "../ingress"): {"ingress": {"enabled": True, "host": "iris.example", "tlsSecret": "model-in-image-tls"}},
    ("web_single", "../http_route"): {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "gateway", "namespace": "gateway"}],
            "hostnames": ["iris.example"],
        }
    },
    ("web_single", "../observability/service_monitor"): {"serviceMonitor": {"enabled": True}},
    ("web_single", "../observability/prometheus_rule"): {"prometheusRule": {"enabled": True}},
}
PAIRS = {
    overlay: {"role": role}
    for role in CHART_ROLES
    if (overlay := OVERLAY_OF.get(role, role)) not in ("asynchronous", "sync_async")
}
PAIRS |= WITH_COMPONENT
# The values that no overlay has, each at least once.
EXAMPLES: dict[str, dict[str, Any]] = {
    "image": {"image": {"repository": "registry.example/iris", "tag": "v2.3", "pullPolicy": "Always"}},
    "image of a variant": {"role": "data_cache", "image": {"tag": "v2.3"}},
    "digest": {"image": {"digest": f"sha256:{'a' * 64}"}},
    "replicas": {"replicas": 3, "autoscaling": {"enabled": False}},
    "no replicas": {"replicas": None, "autoscaling": {"enabled": False}},
    "resources": {"resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": 2}}},
    "autoscaling": {"autoscaling": {"minReplicas": 3, "maxReplicas": 6, "cpu": 50, "memory": 70}},
    "worker": {
        "role": "asynchronous",
        "worker": {"replicas": 4, "autoscaling": {"enabled": False}, "resources": {"limits": {"memory": "512Mi"}}},
    },
    "models": {
        "role": "gateway",
        "models": {"releases": [{"name": 1, "tag": "v1.0"}, {"name": 2}], "autoscaling": {"maxReplicas": 5}},
        "image": {"tag": "v1.1"},
    },
    "service": {"service": {"type": "ClusterIP"}},
    "nodePort": {"service": {"nodePort": 31080}},
    "egress": {"role": "prep", "egress": [{"ports": [{"protocol": "TCP", "port": 6432}]}]},
    "egress of a role that calls nothing": {"egress": [{"ports": [{"protocol": "TCP", "port": 6379}]}]},
    "env": {"env": {"IRIS_DEADLINE_MS": "500", "IRIS_DRAIN_SECONDS": 12.5, "IRIS_MAX_BODY_BYTES": 4194304}},
    "pod": {"pod": {"nodeSelector": {"disk": "ssd"}, "imagePullSecrets": [{"name": "registry"}]}, "podAnnotations": {"a": "b"}},
    "token": {"token": {"enabled": True, "secret": "our-tokens"}},
    "redis": {"role": "sync_async", "redis": {"secret": "our-redis"}},
    "database": {"role": "data_cache", "database": {"secret": "our-database"}},
    "serviceMonitor": {
        "role": "prep",
        "serviceMonitor": {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}},
    },
    "prometheusRule": {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}},
    "ingress": {"ingress": {"enabled": True, "host": "a.example", "className": "nginx", "annotations": {"a": "b"}}},
    "httpRoute": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]}},
}


def sorted_by_name(value: Any) -> Any:
    """Sorts lists of named items: kustomize and Helm merge them in another order."""
    if isinstance(value, dict):
        return {key: sorted_by_name(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [sorted_by_name(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: item["name"]) if named else items
    return value


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    result = {name_of(obj): sorted_by_name(obj) for obj in objects}
    assert len(result) == len(objects)
    return result


@pytest.fixture(scope="module")
def charts() -> dict[str | tuple[str, str], list[Object]]:
    """Objects of the chart, by overlay, and by the name of an example."""
    values = {**PAIRS, **EXAMPLES}
    return dict(zip(values, render_releases([Release(item) for item in values.values()]), strict=True))


@pytest.fixture
def example(charts):
    """Returns the only object of a kind in an example."""

    def get(name: str, kind: str) -> Object:
        (obj,) = of_kind(charts[name], kind)
        return obj

    return get


# The same base


@pytest.mark.parametrize("overlay", PAIRS, ids=str)
def test_the_chart_has_the_objects_of_the_overlay(charts, overlay, tmp_path):
    folder = MANIFESTS / overlay if isinstance(overlay, str) else with_component(*overlay, tmp_path)
    # The namespace is not part of a release: Helm stores the release in it.
    expected = by_name([obj for obj in kustomize(folder) if obj["kind"] != "Namespace"])
    if monitor := expected.get(("ServiceMonitor", "model-in-image-monitor")):
        # The chart knows the instances of its release.
        instances = {"key": "app.kubernetes.io/instance", "operator": "In", "values": ["main", "models-1"]}
        monitor["spec"]["selector"]["matchExpressions"] = [instances]
    found = by_name(charts[overlay])
    assert found.keys() == expected.keys()
    for name, obj in expected.items():
        assert found[name] == obj


def test_every_role_of_a_server_and_every_component_for_clients_is_in_the_chart():
    objects = render_releases([Release({"role": role}) for role in CHART_ROLES])
    servers = [containers(deployment["spec"]["template"])[0] for items in objects for deployment in our_deployments(items)]
    # The role all is for one machine: it stores jobs and items in its own folder.
    assert {settings_of(server).role for server in servers} == set(ROLES) - {"all"}
    assert {component for _, component in WITH_COMPONENT} >= {"../token", "../ingress", "../http_route"}


def test_the_chart_has_no_copy_of_the_manifests():
    link = CHART / "manifests"
    assert link.is_symlink() and link.resolve() == MANIFESTS
    for path in CHART.rglob("templates/*"):
        assert "apiVersion" not in path.read_text()


def test_the_tag_of_the_chart_is_that_of_the_base():
    (container,) = containers(yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())["spec"]["template"])
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert container["image"] == f"{VALUES['image']['repository']}:{chart['appVersion']}"


# Values


def test_helm_lint_finds_nothing_with_any_of_the_values():
    for version in KUBERNETES:
        messages = lint_chart([*PAIRS.values(), *EXAMPLES.values()], version)
        assert {message["error"] for message in messages} <= {"icon is recommended"}


def test_every_object_of_the_chart_matches_the_schemas(charts):
    import kubernetes_validate

    different = {json.dumps(obj, sort_keys=True): obj for name in EXAMPLES for obj in charts[name]}
    for obj in different.values():
        if is_custom(obj):
            assert errors_in(obj) == []
        for version in KUBERNETES:
            assert is_custom(obj) or kubernetes_validate.validate(obj, version, strict=True) == version


def test_every_pod_of_the_chart_follows_the_pod_security_standard_restricted(charts):
    for objects in charts.values():
        assert [violations(template) for template in pods(objects) if violations(template)] == []


def paths(properties: dict[str, Any], prefix: str = "") -> set[str]:
    """Returns the paths of all values in a schema."""
    result = set()
    for name, schema in properties.items():
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        nested = schema.get("properties")
        result |= paths(nested, f"{prefix}{name}.") if nested and name != "resources" else {f"{prefix}{name}"}
    return result


def test_the_schema_has_the_values_of_the_file_and_each_of_them_is_in_an_example():
    def present(values: dict[str, Any], prefix: str = "") -> set[str]:
        return {
            path
            for name, value in values.items()
            for path in (present(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}"})
        }

    known = paths(SCHEMA["properties"]) - {"global"}
    assert present(VALUES) == known
    used = {path for values in [*PAIRS.values(), *EXAMPLES.values()] for path in present(values)}
    used_heads = {".".join(path.split(".")[:depth]) for path in used for depth in (1, 2, 3)}
    # worker and models have the values of the server.
    shared = {path for path in known if path.partition(".")[0] in ("worker", "models")}
    assert known - used_heads - shared <= {"prometheusRule.annotations", "serviceMonitor.annotations", "ingress.labels",
                                           "httpRoute.labels", "httpRoute.annotations"}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "all"}, "/role"),
        ({"rolle": "web_single"}, "rolle"),
        ({"autoscaling": {"min": 3}}, "min"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest"),
        ({"env": {"PYTHONPATH": "/x"}}, "PYTHONPATH"),
        ({"pod": {"containers": []}}, "/pod"),
        ({"models": {"releases": []}}, "/models/releases"),
        ({"ingress": {"enabled": True}}, "ingress.host is required"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is required"),
    ],
)
def test_wrong_values_are_refused_with_their_name(values, message):
    with pytest.raises(ChartError, match=re.escape(message)):
        render_release(values)


def test_the_image_is_composed_of_its_values(example):
    def image(name: str) -> str:
        (container,) = containers(example(name, "Deployment")["spec"]["template"])
        return container["image"]

    assert image("image") == "registry.example/iris:v2.3"
    assert image("image of a variant") == "model-in-image-pattern:v2.3-full"
    assert image("digest") == f"model-in-image-pattern@sha256:{'a' * 64}"
    (container,) = containers(example("image", "Deployment")["spec"]["template"])
    assert container["imagePullPolicy"] == "Always"


def test_replicas_are_set_only_without_an_autoscaler(charts, example):
    assert example("replicas", "Deployment")["spec"]["replicas"] == 3
    assert "replicas" not in example("no replicas", "Deployment")["spec"]
    for name in ("replicas", "no replicas"):
        assert not of_kind(charts[name], "HorizontalPodAutoscaler")
    (worker,) = [obj for obj in of_kind(charts["worker"], "Deployment") if obj["metadata"]["name"].endswith("-worker")]
    assert worker["spec"]["replicas"] == 4
    assert [obj["metadata"]["name"] for obj in of_kind(charts["worker"], "HorizontalPodAutoscaler")] == ["model-in-image-hpa"]


def test_resources_and_targets_replace_those_of_the_base_and_no_others(charts, example):
    base = yaml.safe_load((MANIFESTS / "base/deployment.yml").read_text())["spec"]["template"]
    (container,), (of_base,) = containers(example("resources", "Deployment")["spec"]["template"]), containers(base)
    assert container["resources"] == {
        "requests": {**of_base["resources"]["requests"], "cpu": "500m"},
        "limits": {**of_base["resources"]["limits"], "cpu": 2},
    }
    hpa = example("autoscaling", "HorizontalPodAutoscaler")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (3, 6)
    targets = {metric["resource"]["name"]: metric["resource"]["target"]["averageUtilization"] for metric in hpa["metrics"]}
    assert targets == {"cpu": 50, "memory": 70}
    limits = {deployment["metadata"]["name"]: containers(deployment["spec"]["template"])[0]["resources"]["limits"]["memory"]
              for deployment in our_deployments(charts["worker"])}  # fmt: skip
    assert limits.pop("model-in-image-deployment-worker") == "512Mi"
    assert set(limits.values()) == {of_base["resources"]["limits"]["memory"]}


def test_settings_and_fields_of_the_pod_are_added(example):
    (container,) = containers(example("env", "Deployment")["spec"]["template"])
    settings = settings_of(container)
    assert (settings.deadline_ms, settings.drain_seconds, settings.max_body_bytes) == (500, 12.5, 4194304)
    assert settings.role == "web_single"
    template = example("pod", "Deployment")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"disk": "ssd"} and template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert {"a": "b", "prometheus.io/scrape": "true"}.items() <= template["metadata"]["annotations"].items()


def test_the_secrets_of_the_values_are_those_of_the_pods(charts):
    for name, secret in (("token", "our-tokens"), ("redis", "our-redis"), ("database", "our-database")):
        for template in pods(charts[name]):
            found = re.findall(
                r'"(?:secretName|name)": "(our-\w+|model-in-image-(?:tokens|redis|postgres))"', json.dumps(template)
            )
            assert found and set(found) == {secret}


def test_additional_egress_is_for_the_server_and_not_for_its_models(charts, example):
    ports = {
        obj["metadata"]["name"]: [port["port"] for rule in obj["spec"].get("egress", ()) for port in rule["ports"]]
        for obj in of_kind(charts["egress"], "NetworkPolicy")
    }
    assert ports == {
        "model-in-image-networkpolicy": [53, 53, 8000, 6432],
        "model-in-image-networkpolicy-models-1-pred": [],
    }
    (rule,) = example("egress of a role that calls nothing", "NetworkPolicy")["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 6379}]


def test_a_service_without_a_port_on_the_nodes_has_none(example):
    assert example("service", "Service")["spec"]["type"] == "ClusterIP"
    assert [port.get("nodePort") for port in example("service", "Service")["spec"]["ports"]] == [None]
    assert [port["nodePort"] for port in example("nodePort", "Service")["spec"]["ports"]] == [31080]


def test_two_releases_of_models_run_side_by_side_and_the_gateway_calls_the_last_one(charts):
    images = {obj["metadata"]["name"]: containers(obj["spec"]["template"])[0] for obj in our_deployments(charts["models"])}
    for name in ("setosa", "versicolor", "virginica"):
        assert images[f"model-in-image-deployment-models-1-{name}"]["image"].endswith(":v1.0")
        assert images[f"model-in-image-deployment-models-2-{name}"]["image"].endswith(":v1.1")
        assert f"//model-in-image-service-models-2-{name}:" in settings_of(images["model-in-image-deployment"]).members
    limits = {obj["metadata"]["name"]: obj["spec"]["maxReplicas"] for obj in of_kind(charts["models"], "HorizontalPodAutoscaler")}
    assert limits.pop("model-in-image-hpa") == 10 and set(limits.values()) == {5}


def test_a_digest_is_for_the_new_models_and_the_old_ones_keep_their_tag():
    releases = [{"name": 1, "tag": "v1.0"}, {"name": 2}]
    objects = render_release({"role": "prep", **EXAMPLES["digest"], "models": {"releases": releases}})
    images = {obj["metadata"]["name"]: containers(obj["spec"]["template"])[0]["image"] for obj in of_kind(objects, "Deployment")}
    assert images.pop("model-in-image-deployment-models-1-pred") == "model-in-image-pattern:v1.0"
    assert set(images.values()) == {f"model-in-image-pattern@sha256:{'a' * 64}"} and len(images) == 2


def test_a_host_name_without_a_secret_has_no_tls_and_a_route_without_host_names_has_those_of_its_gateway(example):
    ingress = example("ingress", "Ingress")
    assert "tls" not in ingress["spec"] and ingress["spec"]["ingressClassName"] == "nginx"
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == ["a.example"] and ingress["metadata"]["annotations"] == {
        "a": "b"
    }
    route = example("httpRoute", "HTTPRoute")["spec"]
    assert route["parentRefs"] == [{"name": "public"}] and "hostnames" not in route


def test_the_operator_finds_the_monitor_by_its_label_and_the_interval_is_that_of_the_values(charts, example):
    for name, kind in (
        ("serviceMonitor", "ServiceMonitor"),
        ("serviceMonitor", "PodMonitor"),
        ("prometheusRule", "PrometheusRule"),
    ):
        assert example(name, kind)["metadata"]["labels"]["release"] == "prometheus"
    monitor = example("serviceMonitor", "ServiceMonitor")["spec"]
    assert [endpoint["interval"] for endpoint in monitor["endpoints"]] == ["30s"]
    (instances,) = monitor["selector"]["matchExpressions"]
    services = of_kind(charts["serviceMonitor"], "Service")
    assert {obj["metadata"]["labels"]["app.kubernetes.io/instance"] for obj in services} == set(instances["values"])


def test_the_package_has_the_objects_of_the_folder_and_neither_the_sample_secret_nor_the_documents(tmp_path):
    package = package_chart(tmp_path)
    releases = [Release({"role": role}) for role in CHART_ROLES]
    assert render_files(releases, package) == render_files(releases)
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert "model-in-image/manifests/base/deployment.yml" in names
    assert not [name for name in names if "secret" in name or name.endswith(("manifests/README.md", "dashboard.json"))]


# Two releases


@pytest.mark.parametrize("role", ["asynchronous", "gateway"])
def test_two_releases_in_one_namespace_do_not_disturb_each_other(role):
    values = {"role": role, "service": {"type": "ClusterIP"}, "ingress": {"enabled": True, "host": "a.example"}}
    ours, theirs = render_releases([Release(values, "model-in-image"), Release(values, "other")])
    assert not {name_of(obj) for obj in ours} & {name_of(obj) for obj in theirs}
    for one, other in ((ours, theirs), (theirs, ours)):
        for obj in of_kind(one, "Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"):
            assert [template for template in pods(one) if selector(obj).items() <= template["metadata"]["labels"].items()]
            assert not [template for template in pods(other) if selector(obj).items() <= template["metadata"]["labels"].items()]
    ingress, services = of_kind(theirs, "Ingress")[0], {obj["metadata"]["name"] for obj in of_kind(theirs, "Service")}
    assert ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] in services
    (server,) = [obj for obj in our_deployments(theirs) if obj["metadata"]["name"] == "other-model-in-image-deployment"]
    members = settings_of(containers(server["spec"]["template"])[0]).members if role == "gateway" else ""
    assert {re.search("//([^:]+):", address)[1] for address in members.split(",") if address} <= services
    for hpa in of_kind(theirs, "HorizontalPodAutoscaler"):
        assert hpa["spec"]["scaleTargetRef"]["name"] in {obj["metadata"]["name"] for obj in of_kind(theirs, "Deployment")}


def test_the_objects_are_in_the_namespace_of_the_release_and_long_names_stay_valid():
    objects = render_release({"role": "gateway"}, "r" * 53, "elsewhere")
    assert {obj["metadata"]["namespace"] for obj in objects} == {"elsewhere"}
    assert max(len(obj["metadata"]["name"]) for obj in of_kind(objects, "Service")) <= 63
    assert not re.search(r"namespace: model-in-image\b", yaml.safe_dump_all(objects))


# Documents


def test_the_notes_name_objects_and_secrets_of_the_release():
    (plain, jobs) = (files["NOTES.txt"] for files in render_files([
        Release({}, "other"), Release({"role": "asynchronous", "token": {"enabled": True}})]))  # fmt: skip
    names = {obj["metadata"]["name"] for obj in render_release({}, "other")}
    assert set(re.findall(r"(?:deployment|service)/(\S+)", plain)) <= names and "Secret" not in plain
    assert {"model-in-image-redis", "model-in-image-tokens"} <= set(
        re.findall(r"Secret (\S+?)\.? ?(?:$|exists)", jobs, re.MULTILINE)
    )


def test_the_commands_of_the_readme_have_valid_values():
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```$", (CHART / "README.md").read_text(), re.MULTILINE | re.DOTALL))
    commands = [shlex.split(line) for line in text.splitlines() if line]
    assert {words[0] for words in commands} == {"helm", "kubectl"}
    releases = []
    for words in (words for words in commands if words[0] == "helm"):
        assert words[2:4] == ["model-in-image", "charts/model-in-image"] and words[4:6] == ["--namespace", "model-in-image"]
        values: dict[str, Any] = {}
        for option, argument in pairwise(words):
            if option in ("--set", "--set-json"):
                path, _, value = argument.partition("=")
                *way, last = path.split(".")
                parent = values
                for step in way:
                    parent = parent.setdefault(step, {})
                parent[last] = json.loads(value) if option == "--set-json" else value
        releases.append(Release(values))
    assert len(releases) == 4
    assert all(render_releases(releases))


def test_the_readme_of_the_chart_names_every_value():
    readme = (CHART / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)[.`]", readme, re.MULTILINE)) == set(VALUES)
    assert {f"`{role}`" for role in CHART_ROLES} <= set(re.findall(r"`\w+`", readme))
    assert "charts/model-in-image" in (MANIFESTS / "README.md").read_text()
