"""The dashboard and the alerting rules: compared with the exposed metrics, and evaluated by promtool and Prometheus."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from applications import RecordingLog, call_wsgi
from edge_bundles import write_bundle
from http_clients import ROW, fetch, http_request, wait_until
from optional_programs import require_program
from project import MODEL, ROOT
from prometheus_client.parser import text_string_to_metric_families
from promql_selectors import grouping_labels, parse_promql, selectors

from iris_wsgi.factory import build
from iris_wsgi.observability.metrics import Registry
from iris_wsgi.roles import ROLES
from iris_wsgi.settings import Settings

FOLDER = ROOT / "manifests/observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
(SCRAPE,) = yaml.safe_load((FOLDER / "scrape.yml").read_text())["scrape_configs"]
# Labels that Prometheus and scrape.yml add to every series.
OF_TARGETS = {
    "job",
    "instance",
    *(config["target_label"] for config in SCRAPE["relabel_configs"] if "target_label" in config),
} - {"__address__"}
NOBODY = "http://127.0.0.1:9"
NEEDED = {
    "member": {"member": "setosa"},
    "prep": {"pred_url": NOBODY},
    "gateway": {"members": f"setosa={NOBODY},versicolor={NOBODY},virginica={NOBODY}"},
}
# Metrics without a panel or a rule, with the reason.
LEFT_OUT = {
    "http_request_duration_seconds_count": "http_requests_total counts the same, by status too",
    "http_request_duration_seconds_sum": "quantiles, no mean: a few slow requests are what one looks for",
    "inference_rows_total": "model_rows_total has them, by label",
    "inference_runs_total": "model_runs_total has them",
    "item_cache_entries": "the bytes are what is bounded",
    "prediction_cache_entries": "the bytes are what is bounded",
    "process_virtual_memory_bytes": "says nothing about what is used",
}


class Series(NamedTuple):
    """Type of a metric, and all possible values of its labels."""

    kind: str
    labels: dict[str, set[str]]


def panels_of() -> list[dict]:
    """Returns all panels except rows, including the panels of a folded row."""
    found = [*DASHBOARD["panels"], *(item for row in DASHBOARD["panels"] for item in row.get("panels", ()))]
    return [item for item in found if item["type"] != "row"]


def without_variables(expression: str) -> str:
    """Replaces Grafana's variables by values."""
    return re.sub(r"\$(job|namespace|instance|role)\b", ".*", expression.replace("$__rate_interval", "5m"))


IN_PANELS = [(panel["title"], target["expr"], target["legendFormat"]) for panel in panels_of() for target in panel["targets"]]
EXPRESSIONS = [without_variables(expected) for _, expected, _ in IN_PANELS] + [rule["expr"] for rule in RULES]


@pytest.fixture(scope="session")
def exposed_series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    """Returns the series of every role by name.

    Some series appear in a registry only with their first request, so all registries are read. Other series are not in a
    registry, so GET /metrics is read too.
    """
    found: dict[str, Series] = {"up": Series("gauge", {})}
    bundle = tmp_path_factory.mktemp("edge")
    write_bundle(bundle)

    def note(name: str, kind: str, labels: dict[str, set[str]]) -> None:
        result = found.setdefault(name, Series(kind, defaultdict(set)))
        assert result.kind == kind
        for label, values in labels.items():
            result.labels[label] |= values

    for role in ROLES:
        folder, registry = tmp_path_factory.mktemp("state"), Registry()
        more = {"edge_dir": str(bundle)} if role == "all" else {}
        settings = Settings(role=role, model_dir=str(MODEL), state_dir=str(folder), **NEEDED.get(role, {}), **more)
        service = build(settings, RecordingLog(), registry)
        service.background.start()
        if "check the job store" in {task.name for task in service.background.tasks}:
            wait_until(lambda registry=registry: b"\njobs{" in registry.text(), "the worker has read the store")
        service.background.stop(0)
        for family in registry.families:
            suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
            for end in suffixes:
                note(
                    family.name + end,
                    family.kind,
                    {name: {key[i] for key in family.first} for i, name in enumerate(family.names)},
                )
        assert call_wsgi(service.app, "GET", "/nowhere")[0] == 404
        for item in text_string_to_metric_families(call_wsgi(service.app, "GET", "/metrics")[2].decode()):
            for sample in item.samples:
                note(sample.name, item.type, {label: {value} for label, value in sample.labels.items()})
    for name, rule in RECORDED.items():
        found[name] = Series("gauge", {label: set() for label in grouping_labels(parse_promql(rule["expr"]))})
    return found


# Expressions


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_uses_exposed_series_and_labels_only(expression, exposed_series):
    tree = parse_promql(expression)
    found = list(selectors(tree))
    for name, matchers, _ in found:
        assert name in exposed_series, f"no role has {name}"
        for label, op, value in matchers:
            if label in OF_TARGETS:
                assert value in (".*", SCRAPE["job_name"])
                continue
            assert label in exposed_series[name].labels, f"{name} has no label {label}"
            # Each alternative must match a possible value, also in a negative matcher.
            for word in value.split("|") if op in ("Re", "NotRe") else [re.escape(value)]:
                assert any(re.fullmatch(word, label_value) for label_value in exposed_series[name].labels[label]), (
                    f"{name}: {label} is never {word}"
                )
    labels = {label for name, _, _ in found for label in exposed_series[name].labels}
    assert set(grouping_labels(tree)) <= labels | OF_TARGETS


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_used_with_rate_and_gauges_are_not(expression, exposed_series):
    for name, _, within in selectors(parse_promql(expression)):
        assert ("rate" in within) == (exposed_series[name].kind in ("counter", "histogram")), name
        assert ("histogram_quantile" in within) == name.endswith("_bucket")


@pytest.mark.parametrize(
    "wrong",
    ["sum(rate(http_request_total[5m]))", 'jobs{state="waiting"}', "sum by (path) (jobs)", 'jobs{status="failed"}', "sum(jobs",
     'rate(http_requests_total{route!~"/healthz|/readyz"}[5m])', 'up{job="iris"}'],
)  # fmt: skip
def test_an_expression_with_a_typing_error_is_found(wrong, exposed_series):
    with pytest.raises((AssertionError, ValueError)):
        test_an_expression_uses_exposed_series_and_labels_only(wrong, exposed_series)


def test_every_metric_has_a_panel_or_a_rule_or_a_reason_for_none(exposed_series):
    used = {name for expression in EXPRESSIONS for name, _, _ in selectors(parse_promql(expression))}
    for name, series in exposed_series.items():
        base = name.rpartition("_")[0]
        if series.kind == "histogram" and not name.endswith("_bucket"):
            # Quantiles are computed from the buckets.
            assert f"{base}_bucket" in used
            continue
        assert (name in used) != (name in LEFT_OUT), name
    assert set(LEFT_OUT) <= set(exposed_series)


def test_every_metric_is_in_the_documents(exposed_series):
    text = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    names = {
        re.sub("_(bucket|sum|count)$", "", name) if item.kind == "histogram" else name for name, item in exposed_series.items()
    }
    # The documents name the standard process metrics together, as process_*.
    expected = {name for name in names if not name.startswith("process_") and name != "up" and name not in RECORDED}
    assert sorted(name for name in expected if f"`{name}`" not in text) == []


# Dashboard


def test_the_dashboard_can_be_imported_into_any_grafana():
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and DASHBOARD["title"] and "id" not in DASHBOARD
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    result = re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))
    assert set(result) - {"__rate_interval", "__all"} == set(variables)
    of_panels = [panel["datasource"] for panel in [*panels_of(), *variables.values()] if panel["type"] != "datasource"]
    assert all(panel == {"type": "prometheus", "uid": "${datasource}"} for panel in of_panels)


def test_each_variable_is_an_existing_label(exposed_series):
    for item in DASHBOARD["templating"]["list"]:
        if item["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", item["query"]["query"]).groups()
            test_an_expression_uses_exposed_series_and_labels_only(
                re.sub('role=~"[^"]*"', 'role=~"all"', without_variables(series)), exposed_series
            )
            assert label in OF_TARGETS | set(exposed_series["iris_wsgi_info"].labels)


def test_each_panel_has_a_description_and_a_unit():
    for panel in panels_of():
        assert panel["title"] and panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"] and len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    titles = [panel["title"] for panel in panels_of() if panel["title"] not in ("In memory", "Latency")]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(("title", "expression", "legend"), IN_PANELS)
def test_a_legend_uses_labels_of_its_expression(title, expression, legend):
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= set(grouping_labels(parse_promql(without_variables(expression))))


def test_panels_have_unique_ids_and_lie_in_rows_without_overlapping():
    ids = [
        panel["id"]
        for panel in [*DASHBOARD["panels"], *(inner for row in DASHBOARD["panels"] for inner in row.get("panels", ()))]
    ]
    assert len(ids) == len(set(ids))
    rows = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert DASHBOARD["panels"][0] is rows[0] and not rows[0]["collapsed"]
    # A folded row has a separate layout, because Grafana moves the panels below it.
    for level in (DASHBOARD["panels"], *(row["panels"] for row in rows)):
        occupied = set()
        for item in level:
            grid_position = item["gridPos"]
            cells = {
                (x, y)
                for x in range(grid_position["x"], grid_position["x"] + grid_position["w"])
                for y in range(grid_position["y"], grid_position["y"] + grid_position["h"])
            }
            assert cells and max(x for x, _ in cells) < 24 and not cells & occupied, item["title"]
            occupied |= cells
    assert all(bool(row["panels"]) == row["collapsed"] for row in rows)


# Rules


def test_each_alert_has_a_severity_a_description_and_an_action():
    for name, rule in ALERTS.items():
        assert re.fullmatch("Iris[A-Z][A-Za-z]+", name)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "action"}
        assert all(len(text) > 20 for text in rule["annotations"].values())
        # Prometheus replaces a missing label in a message by an empty string.
        result = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        tree = parse_promql(rule["expr"])
        assert result <= (set(grouping_labels(tree)) or OF_TARGETS)


def test_every_command_and_file_in_an_action_exists():
    text = json.dumps([rule["annotations"] for rule in ALERTS.values()])
    assert set(re.findall(r"IRIS_\w+", text)) <= {f"IRIS_{field.name.upper()}" for field in fields(Settings)}
    assert set(re.findall(r"\bIris[A-Z]\w+", text)) <= set(ALERTS)


def promtool(*words: str) -> str:
    result = subprocess.run([require_program("promtool"), *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_promtool_accepts_the_rules():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(FOLDER / "rules.yml"))


HERE = 'job="iris_wsgi",namespace="n",component="server",instance="i"'
ROUTED = f'{HERE},method="POST",route="/predict",status='
# For each alert, series that make it fire within three hours. The values are a minute apart; `0+60x180` grows by 60 a minute.
FIRES = {
    "IrisTargetDown": {f"up{{{HERE}}}": "1x60 0x120"},
    "IrisAbsent": {},
    "IrisNotReady": {f'http_requests_total{{{HERE},method="GET",route="/readyz",status="503"}}': "0+12x180"},
    "IrisErrorsFast": {f'http_requests_total{{{ROUTED}"200"}}': "0+600x180", f'http_requests_total{{{ROUTED}"500"}}': "0+12x180"},
    "IrisErrorsSlow": {f'http_requests_total{{{ROUTED}"200"}}': "0+600x180", f'http_requests_total{{{ROUTED}"504"}}': "0+5x180"},
    "IrisSlow": {
        f'http_request_duration_seconds_bucket{{{HERE},method="POST",route="/predict",le="1.0"}}': "0+60x180",
        f'http_request_duration_seconds_bucket{{{HERE},method="POST",route="/predict",le="2.5"}}': "0+62x180",
        f'http_request_duration_seconds_bucket{{{HERE},method="POST",route="/predict",le="+Inf"}}': "0+62x180",
    },
    "IrisOverloaded": {f'http_requests_total{{{HERE},method="other",route="unmatched",status="503"}}': "0+1x180"},
    "IrisRestarting": {f"process_start_time_seconds{{{HERE}}}": "0x170 1 2 3 4x7"},
    "IrisInputOutOfRange": {
        f'model_input_out_of_range_total{{{HERE},feature="a"}}': "0+6x180",
        f'model_input_out_of_range_total{{{HERE},feature="b"}}': "0+0x180",
        f'model_rows_total{{{HERE},label="x"}}': "0+60x180",
        f'model_rows_total{{{HERE},label="y"}}': "0+20x180",
    },
    "IrisJobsWait": {f"jobs_oldest_queued_seconds{{{HERE}}}": "0+60x180"},
    "IrisDeadLetters": {f'jobs{{{HERE},state="failed"}}': "3x175 4x5"},
    "IrisJobStoreDown": {f"job_store_up{{{HERE}}}": "1x170 0x10"},
    "IrisJobQueueFull": {f'job_submissions_total{{{HERE},outcome="full"}}': "0+1x180"},
    "IrisJobsReclaimed": {f"job_reclaimed_total{{{HERE}}}": "0+1x180"},
    "IrisHybridDegraded": {f'hybrid_answers_total{{{HERE},final="degraded"}}': "0+1x180"},
    "IrisHybridDisagrees": {
        f'hybrid_agreements_total{{{HERE},agrees="true"}}': "0+6x180",
        f'hybrid_agreements_total{{{HERE},agrees="false"}}': "0+4x180",
    },
    "IrisBreakerOpen": {f'remote_breaker_open{{{HERE},target="pred"}}': "0x170 1x10"},
    "IrisCallsFail": {
        f'remote_calls_total{{{HERE},target="setosa",outcome="ok"}}': "0+60x180",
        f'remote_calls_total{{{HERE},target="setosa",outcome="late"}}': "0+6x180",
    },
    "IrisItemStoreFails": {f'item_store_failures_total{{{HERE},of="database"}}': "0+1x180"},
    "IrisPredictionCacheFails": {f"prediction_cache_shared_failures_total{{{HERE}}}": "0+1x180"},
}
# Series of a healthy server: invalid requests of clients, one failure, old dead letters, and responses of upstream servers.
CALM = {
    f"up{{{HERE}}}": "1x180",
    f'http_requests_total{{{ROUTED}"200"}}': "0+6000x180",
    f'http_requests_total{{{ROUTED}"422"}}': "0+600x180",
    f'http_requests_total{{{ROUTED}"503"}}': "0x100 1x80",
    f'http_requests_total{{{HERE},method="other",route="unmatched",status="501"}}': "0+600x180",
    f'http_requests_total{{{HERE},method="GET",route="/readyz",status="200"}}': "0+12x180",
    f'http_requests_total{{{HERE},method="GET",route="/v2/health/ready",status="503"}}': "0+12x180",
    f'http_request_duration_seconds_bucket{{{HERE},method="POST",route="/predict",le="0.001"}}': "0+6000x180",
    f'http_request_duration_seconds_bucket{{{HERE},method="POST",route="/predict",le="+Inf"}}': "0+6000x180",
    f'http_request_duration_seconds_bucket{{{HERE},method="GET",route="/jobs/{{id}}",le="+Inf"}}': "0+6000x180",
    f"process_start_time_seconds{{{HERE}}}": "5x180",
    f'model_rows_total{{{HERE},label="x"}}': "0+60x180",
    f'model_input_out_of_range_total{{{HERE},feature="a"}}': "0+1x180",
    f"jobs_oldest_queued_seconds{{{HERE}}}": "2x180",
    f'jobs{{{HERE},state="failed"}}': "3x180",
    f"job_store_up{{{HERE}}}": "1x180",
    f'job_submissions_total{{{HERE},outcome="accepted"}}': "0+60x180",
    f"job_reclaimed_total{{{HERE}}}": "1x180",
    f'hybrid_answers_total{{{HERE},final="queued"}}': "0+60x180",
    f'hybrid_agreements_total{{{HERE},agrees="true"}}': "0+60x180",
    f'remote_breaker_open{{{HERE},target="pred"}}': "0x180",
    f'remote_calls_total{{{HERE},target="setosa",outcome="ok"}}': "0+60x180",
    f'item_store_failures_total{{{HERE},of="redis"}}': "2x180",
    f"prediction_cache_shared_failures_total{{{HERE}}}": "2x180",
}


def promtool_test(series: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    """Returns a promtool test: after three hours of these series, the alerts `wanted` fire. Without any, no alert fires."""
    tests = [
        {
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0',
            "eval_time": "3h",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for name in expected
    ] or [{"expr": "ALERTS", "eval_time": "3h", "exp_samples": []}]
    result = {
        "rule_files": [str(FOLDER / "rules.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": tests,
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(result))
    promtool("test", "rules", str(tmp_path / "test.yml"))


def test_every_alert_has_an_example():
    assert set(FIRES) == set(ALERTS)


@pytest.mark.parametrize("name", FIRES)
def test_an_alert_fires_in_its_example(name, tmp_path):
    promtool_test(FIRES[name], [name], tmp_path)


def test_no_alert_fires_for_a_healthy_server(tmp_path):
    promtool_test(CALM, [], tmp_path)


# Prometheus

TRAFFIC = [
    http_request("POST", "/predict/batch", {"data": [[1000, 0, 0, 0], ROW]}),
    http_request("POST", "/predict/hybrid", {"data": [ROW]}),
    http_request("POST", "/ensemble/predict", {"data": [ROW]}),
    http_request(
        "POST", "/v2/models/iris_svc/infer", {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4], "data": ROW}]}
    ),
    http_request("PUT", "/items/one", {"data": [ROW]}),
    http_request("GET", "/items/one/prediction"),
    http_request("GET", "/items/none"),
    http_request("GET", "/edge/manifest.json"),
]
# Expressions without a result for a healthy server.
NEVER = {"Rejected for lack of capacity"}


def pod_of(component: str, server) -> dict:
    """Returns a target with the labels that the cluster adds before the relabeling of scrape.yml."""
    annotations = yaml.safe_load((ROOT / "manifests/base/deployment.yml").read_text())["spec"]["template"]["metadata"][
        "annotations"
    ]
    meta = {f"pod_annotation_{re.sub(r'[./]', '_', name)}": value for name, value in annotations.items()}
    assert meta["pod_annotation_prometheus_io_port"] == "8000"
    meta |= {"pod_annotation_prometheus_io_port": str(server.port), "pod_ip": server.host, "pod_name": f"pod-{component}"}
    meta |= {
        "namespace": "n",
        "pod_label_app_kubernetes_io_part_of": "model-in-image",
        "pod_label_app_kubernetes_io_component": component,
    }
    return {"targets": ["replaced:1"], "labels": {f"__meta_kubernetes_{name}": value for name, value in meta.items()}}


class Prometheus:
    """Prometheus that scrapes these servers several times a second."""

    def __init__(self, program: str, servers: dict[str, object]) -> None:
        self.folder = folder = Path(mkdtemp(prefix="iris"))
        scrape = {name: value for name, value in SCRAPE.items() if name != "kubernetes_sd_configs"}
        scrape["static_configs"] = [pod_of(component, server) for component, server in servers.items()]
        often = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
        result = {"global": often, "rule_files": [str(FOLDER / "rules.yml")], "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(result))
        command = [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            # Example: … msg="TLS is disabled." http2=false address=127.0.0.1:32803
            if "TLS is disabled" in line:
                self.url = f"http://{line.rpartition('address=')[2].strip()}/api/v1"
            if "Server is ready" in line:
                break

    def get(self, path: str, **parameters: str) -> dict:
        with urlopen(f"{self.url}/{path}?{urlencode(parameters)}", timeout=120) as response:
            result = json.load(response)
        assert result["status"] == "success"
        return result["data"]

    def finds(self, expression: str) -> bool:
        """Evaluates an expression and returns whether it has a result."""
        return bool(self.get("query", query=expression)["result"])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        shutil.rmtree(self.folder)


@pytest.fixture
def prometheus(run, upstream_settings, tmp_path) -> Iterator[tuple[Prometheus, dict]]:
    """Prometheus with its servers: one server with every feature, and servers that call upstream servers."""
    program = require_program("prometheus")
    write_bundle(tmp_path / "edge")
    servers = {
        "server": run("--edge-dir", str(tmp_path / "edge")),
        "prep": run("--role", "prep", "--pred-url", upstream_settings["prep"]["pred_url"]),
        "gateway": run("--role", "gateway", "--members", upstream_settings["gateway"]["members"]),
    }
    for server in servers.values():
        wait_until(lambda server=server: fetch(server, http_request("GET", "/readyz")).status == 200, "Prometheus is ready")
    running = Prometheus(program, servers)
    yield running, servers
    running.end()


@pytest.mark.long
def test_prometheus_evaluates_every_expression_and_every_panel_shows_data(prometheus):
    running, servers = prometheus
    empty = {
        (title, without_variables(expected).replace("[5m]", "[2s]")) for title, expected, _ in IN_PANELS if title not in NEVER
    }

    def panels_with_data() -> bool:
        for traffic in TRAFFIC:
            fetch(servers["server"], traffic)
        fetch(servers["prep"], TRAFFIC[0]), fetch(servers["gateway"], TRAFFIC[2])
        empty.difference_update([item for item in empty if running.finds(item[1])])
        return not empty

    wait_until(panels_with_data, "each panel shows data")
    # The remaining expressions must be valid too.
    assert not any(running.finds(without_variables(expected)) for title, expected, _ in IN_PANELS if title in NEVER)
    by_role = running.get("query", query=without_variables(IN_PANELS[0][1]))["result"]
    assert {item["metric"]["role"]: item["value"][1] for item in by_role} == {"all": "1", "prep": "1", "gateway": "1"}
    (up,) = [item["metric"] for item in running.get("query", query="up")["result"] if item["metric"]["component"] == "prep"]
    assert up == {"__name__": "up", "job": "iris_wsgi", "namespace": "n", "component": "prep", "instance": "pod-prep"}

    def rules() -> list[dict]:
        return [rule for group in running.get("rules")["groups"] for rule in group["rules"]]

    def alerts() -> set[str]:
        return {rule["name"] for rule in rules() if rule["type"] == "alerting" and rule["alerts"]}

    wait_until(lambda: {rule["health"] for rule in rules()} == {"ok"} and "IrisAbsent" not in alerts(), "each rule was evaluated")
    assert len(rules()) == len(RULES) and "IrisTargetDown" not in alerts()
    wait_until(lambda: "IrisInputOutOfRange" in alerts(), "the worker has counted the first row")
    servers["prep"].stop()
    wait_until(lambda: "IrisTargetDown" in alerts(), "the alert fires")
