"""The components for autoscaling by the queue, for the Prometheus Operator, and for host names."""

import re
from typing import Any

import pytest
import yaml
from custom_resources import errors_in, parse_declarations
from kustomize_overlays import (
    MANIFESTS,
    Object,
    containers,
    kustomize,
    of_kind,
    our_deployments,
    selector,
    settings_of,
    with_component,
)
from project import ROOT
from promql_selectors import parse_promql, selectors

BENCHMARK = (ROOT / "docs/benchmark.md").read_text()
RULES = yaml.safe_load((MANIFESTS / "observability/rules.yml").read_text())
(SCRAPE,) = yaml.safe_load((MANIFESTS / "observability/scrape.yml").read_text())["scrape_configs"]
OVERLAYS_WITH_WORKERS = ("asynchronous", "sync_async")


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = [obj for obj in of_kind(objects, kind) if obj["metadata"]["name"].endswith(name)]
    return found


def read(name: str) -> Any:
    return yaml.safe_load((MANIFESTS / name).read_text())


# Custom resources


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("http_route/httproute.yml", "spec.rules.0.backendRefs.0.prt", 1, "/spec/rules/0/backendRefs/0: prt is unknown"),
        (
            "http_route/httproute.yml",
            "spec.rules.0.matches.0.path.type",
            "Prefix",
            "/spec/rules/0/matches/0/path/type: 'Prefix' is not",
        ),
        ("http_route/httproute.yml", "spec.hostnames", "a.example", "/spec/hostnames: 'a.example' is not Array"),
        (
            "jobs/keda/scaledobject.yml",
            "spec.triggers.0.metadata.threshold",
            5000,
            "/spec/triggers/0/metadata/threshold: 5000 is not a string",
        ),
        ("jobs/keda/scaledobject.yml", "spec.scaleTargetRef", {}, "/spec/scaleTargetRef: name is missing"),
        ("jobs/keda/scaledobject.yml", "spec.pollingInterval", True, "/spec/pollingInterval: True is not a number"),
        (
            "observability/service_monitor/servicemonitor.yml",
            "spec.endpoints.0.relabelings.0.action",
            "swap",
            "/action: 'swap' is not",
        ),
        ("observability/service_monitor/podmonitor.yml", "spec.selector.labels", {}, "/spec/selector: labels is unknown"),
        ("observability/prometheus_rule/prometheusrule.yml", "spec.groups.0.rules", {}, "/spec/groups/0/rules: {} is not Array"),
    ],
)
def test_a_wrong_field_of_a_custom_resource_is_found(file, path, value, message):
    obj = read(file)
    assert errors_in(obj) == []
    *way, last = path.split(".")
    parent = obj
    for step in way:
        parent = parent[int(step)] if step.isdigit() else parent[step]
    parent[last] = value
    (error,) = errors_in(obj)
    assert message in error


def test_declarations_are_read_with_their_parents_maps_and_choices():
    declared = parse_declarations("""
        /** A comment; with "text": string; */
        export interface IBase { "name": string; }
        export interface IThing extends IBase { "labels"?: { [key: string]: string; }; "size"?: Array<ISize>; }
        export declare class Thing implements IThing { "name": string; }
        export type ISize = "small" | number;
        export type { IThing as ILongThing };
    """)
    assert list(declared.errors("ILongThing", {"name": "a", "labels": {"a": "b"}, "size": ["small", 3]})) == []
    assert len(list(declared.errors("ILongThing", {"labels": {"a": 1}, "size": ["large", None], "more": 1}))) == 5


# Scaling of workers by the queue


@pytest.fixture(scope="module", params=OVERLAYS_WITH_WORKERS)
def scaled(request, tmp_path_factory) -> dict[str, list[Object]]:
    """Objects of an overlay with workers, by the component that scales them."""
    folder = tmp_path_factory.mktemp("scaled")
    return {name: kustomize(with_component(request.param, f"../jobs/{name}", folder)) for name in ("keda", "external_metric")}


def jobs_a_second(workers: int) -> int:
    """Returns the jobs that workers finish in a second with a backlog in Redis, from docs/benchmark.md."""
    table = BENCHMARK[BENCHMARK.index("| backlog/s |") :]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:6]]
    (backlog,) = [cells[4] for cells in rows if cells[:2] == ["Redis", str(workers)]]
    return int(backlog.replace(",", ""))


def test_both_components_scale_the_workers_by_the_same_numbers(scaled):
    keda, hpa = (
        one(scaled["keda"], "ScaledObject")["spec"],
        one(scaled["external_metric"], "HorizontalPodAutoscaler", "-worker")["spec"],
    )
    targets = [metric["external"]["target"] for metric in hpa["metrics"]]
    assert [(trigger["metricType"], trigger["metadata"]["threshold"]) for trigger in keda["triggers"]] == [
        (target["type"], target.get("averageValue", target.get("value"))) for target in targets
    ]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    names = {obj["metadata"]["name"] for objects in scaled.values() for obj in of_kind(objects, "Deployment")}
    assert {keda["scaleTargetRef"]["name"], hpa["scaleTargetRef"]["name"]} == {"model-in-image-deployment-worker"} <= names


def test_only_one_autoscaler_scales_the_workers_and_that_of_the_server_stays(scaled):
    assert [obj["metadata"]["name"] for obj in of_kind(scaled["keda"], "HorizontalPodAutoscaler")] == ["model-in-image-hpa"]
    server = one(scaled["external_metric"], "HorizontalPodAutoscaler", "-hpa")["spec"]
    assert {metric["type"] for metric in server["metrics"]} == {"Resource"}
    (worker,) = [obj for obj in of_kind(scaled["keda"], "Deployment") if obj["metadata"]["name"].endswith("-worker")]
    assert "replicas" not in worker["spec"]


def test_the_waiting_jobs_of_a_pod_are_those_of_a_second_and_all_pods_run_before_redis_is_full(scaled):
    spec = one(scaled["keda"], "ScaledObject")["spec"]
    threshold = int(spec["triggers"][0]["metadata"]["threshold"])
    assert 0.5 < threshold / jobs_a_second(1) < 2
    # manifests/README.md gives the number of jobs that the sample Redis holds.
    (capacity,) = re.findall(r"some\n?\s*([\d,]+) jobs of one row", (MANIFESTS / "README.md").read_text())
    assert threshold * spec["maxReplicaCount"] < int(capacity.replace(",", "")) / 2
    # The fallback.
    assert spec["fallback"]["replicas"] == 4 and jobs_a_second(4) > 2 * jobs_a_second(1)


def test_the_oldest_job_waits_longer_than_a_lease_and_less_than_the_alert_allows(scaled):
    spec = one(scaled["keda"], "ScaledObject")["spec"]
    seconds = int(spec["triggers"][1]["metadata"]["threshold"])
    (server,) = containers(our_deployments(scaled["keda"])[0]["spec"]["template"])
    (alert,) = [rule["expr"] for group in RULES["groups"] for rule in group["rules"] if rule.get("alert") == "IrisJobsWait"]
    assert 2 * settings_of(server, scaled["keda"]).lease_seconds < seconds < int(alert.rpartition(">")[2])


def test_the_queries_are_maxima_of_the_metrics_of_the_store(scaled):
    adapter = read("jobs/external_metric/adapter.yml")["externalRules"]
    hpa = one(scaled["external_metric"], "HorizontalPodAutoscaler", "-worker")["spec"]
    assert [rule["name"]["as"] for rule in adapter] == [metric["external"]["metric"]["name"] for metric in hpa["metrics"]]
    queries = [trigger["metadata"]["query"] for trigger in one(scaled["keda"], "ScaledObject")["spec"]["triggers"]]
    for rule, query in zip(adapter, queries, strict=True):
        series = rule["seriesQuery"].partition("{")[0]
        written = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "namespace")
        written = written.replace("<<.LabelMatchers>>", 'namespace="model-in-image"')
        for expression in (query, written):
            assert expression.startswith("max")
            (found,) = selectors(parse_promql(expression))
            states = {("state", "Equal", "queued")} if series == "jobs" else set()
            expected = {("job", "Equal", "iris_wsgi"), ("namespace", "Equal", "model-in-image"), *states}
            assert (found.name, {tuple(matcher) for matcher in found.matchers}) == (series, expected)


def test_missing_samples_do_not_look_like_an_empty_queue(scaled):
    spec = one(scaled["keda"], "ScaledObject")["spec"]
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in spec["triggers"]} == {"false"}
    # KEDA falls back only for this type.
    assert spec["triggers"][0]["metricType"] == "AverageValue"


# Prometheus Operator


def test_the_prometheus_rule_has_the_rules_of_the_file_with_their_comments():
    rule, file = (
        (MANIFESTS / f"observability/{name}").read_text() for name in ("prometheus_rule/prometheusrule.yml", "rules.yml")
    )
    copied = re.sub(r"^  ", "", rule.partition("\nspec:\n")[2], flags=re.MULTILINE)
    assert copied == file[file.index("groups:") :]
    assert yaml.safe_load(rule)["spec"] == RULES


@pytest.mark.parametrize(("name", "field"), [("servicemonitor", "endpoints"), ("podmonitor", "podMetricsEndpoints")])
def test_a_monitor_gives_its_targets_the_labels_of_the_scrape_job(name, field):
    (endpoint,) = read(f"observability/service_monitor/{name}.yml")["spec"][field]
    found = {item["targetLabel"]: item.get("sourceLabels") or item["replacement"] for item in endpoint["relabelings"]}
    expected = {item["target_label"]: item["source_labels"] for item in SCRAPE["relabel_configs"] if "target_label" in item}
    # The operator itself finds the address, and adds the namespace.
    del expected["__address__"], expected["namespace"]
    assert found == {"job": SCRAPE["job_name"], **expected}
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")


def test_the_monitors_find_each_pod_of_ours_once_and_no_redis(tmp_path):
    objects = kustomize(with_component("asynchronous", "../observability/service_monitor", tmp_path))
    services, pods = one(objects, "ServiceMonitor")["spec"], one(objects, "PodMonitor")["spec"]
    (rule,) = services["selector"]["matchExpressions"]
    assert rule["operator"] == "NotIn"
    found = []
    for service in of_kind(objects, "Service"):
        labels = service["metadata"]["labels"]
        chosen = services["selector"]["matchLabels"].items() <= labels.items() and labels[rule["key"]] not in rule["values"]
        # Redis has no port of this name.
        if chosen and "http" in {port["name"] for port in service["spec"]["ports"]}:
            found += [
                obj["metadata"]["name"]
                for obj in of_kind(objects, "Deployment")
                if selector(service).items() <= labels_of(obj).items()
            ]
    found += [
        obj["metadata"]["name"]
        for obj in of_kind(objects, "Deployment")
        if pods["selector"]["matchLabels"].items() <= labels_of(obj).items()
    ]
    assert sorted(found) == sorted(obj["metadata"]["name"] for obj in our_deployments(objects))


def labels_of(deployment: Object) -> dict[str, str]:
    return deployment["spec"]["template"]["metadata"]["labels"]


def test_the_services_of_the_colors_are_not_scraped():
    (rule,) = read("observability/service_monitor/servicemonitor.yml")["spec"]["selector"]["matchExpressions"]
    colors = {path.name for path in (MANIFESTS / "release").iterdir()} & {"blue", "green"}
    assert set(rule["values"]) == colors


# Host names


@pytest.mark.parametrize("component", ["ingress", "http_route"])
def test_a_host_name_leads_to_the_public_service(component, tmp_path):
    objects = kustomize(with_component("web_single", f"../{component}", tmp_path))
    service = one(objects, "Service")
    if component == "ingress":
        spec = one(objects, "Ingress")["spec"]
        ((path,),) = [rule["http"]["paths"] for rule in spec["rules"]]
        assert (path["path"], path["pathType"]) == ("/", "Prefix")
        backend = path["backend"]["service"]
        assert (backend["name"], backend["port"]["name"]) == (service["metadata"]["name"], service["spec"]["ports"][0]["name"])
        assert [host for tls in spec["tls"] for host in tls["hosts"]] == [rule["host"] for rule in spec["rules"]]
    else:
        (rule,) = one(objects, "HTTPRoute")["spec"]["rules"]
        (backend,) = rule["backendRefs"]
        assert (backend["name"], backend["port"]) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
        assert [match["path"] for match in rule["matches"]] == [{"type": "PathPrefix", "value": "/"}]
