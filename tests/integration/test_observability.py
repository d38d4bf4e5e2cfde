"""The example dashboard and alerts match `/metrics`, and promtool accepts them."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker_orcd.testing.harness import RunningWorker

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "observability" / "grafana-dashboard.json"
ALERTS = ROOT / "deploy" / "observability" / "alerts.yml"
PAGE = ROOT / "docs" / "observability.md"
ALERTS_TEST = Path(__file__).parent / "alerts.test.yml"
GRAFANAS = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*"}
OF_EVERY_SCRAPE = {"job", "instance"}


def promtool(*arguments: str | Path) -> None:
    """Run one of promtool's checks. Returns its output."""
    done = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Each panel's title and queries, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in GRAFANAS.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            yield panel["title"], query


def alert_names(text: str) -> list[str]:
    """The metrics named in this text."""
    return re.findall(r"alert(?:name)?: (\w+)", text)


def queries() -> list[str]:
    """All queries of the dashboard and the alerts."""
    alerts = re.findall(
        r"expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)", re.sub(r" *#.*\n", "", ALERTS.read_text(encoding="utf-8"))
    )
    found = [block or line for block, line in alerts]
    assert len(found) == len(alert_names(ALERTS.read_text(encoding="utf-8")))
    return found + [query for _, query in dashboard_queries()]


def selectors(query: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Each metric in a query, with the labels that it is chosen by: name to operator and value."""
    for name, labels in re.findall(r"\b((?:worker_|vllm:|up\b)[a-z_:]*)(?:\{([^}]*)\})?", query):
        yield (
            name,
            {label: (how, value) for label, how, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', labels)},
        )


def test_queries_ask_for_what_a_worker_really_answers(worker: RunningWorker) -> None:
    """Every metric, label and value in a query exists in `/metrics` from the start."""
    seen: dict[str, list[dict[str, str]]] = {"up": [{"job": "worker-orcd"}]}
    for family in text_string_to_metric_families(worker.client.get("/metrics").text):
        for sample in family.samples:
            seen.setdefault(sample.name, []).append(sample.labels)
    asked = [(query, name, labels) for query in queries() for name, labels in selectors(query)]
    assert len(asked) > len(queries())
    for query, name, labels in asked:
        assert name in seen, f"there is no {name}: {query}"
        for label, (how, value) in labels.items():
            if label in OF_EVERY_SCRAPE:
                continue
            values = {one[label] for one in seen[name] if label in one}
            assert value in values if how in ("=", "!=") else values, (
                f"{name} has no {label}={value!r}: {values}"
            )


def test_labels_that_queries_group_by_are_those_of_their_metrics(worker: RunningWorker) -> None:
    """A label that does not exist would merge all series into one without a name."""
    labels = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(worker.client.get("/metrics").text)
        for sample in family.samples
    }
    for query in queries():
        for inside in re.findall(r"(?:by|without) \(([^)]*)\)", query):
            known = set().union(*(labels.get(name, set()) for name, _ in selectors(query))) | OF_EVERY_SCRAPE
            assert {label.strip() for label in inside.split(",")} <= known, query


def test_the_dashboard_is_whole() -> None:
    """All panels use the selectable data source, and have unique ids, titles and places."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert (
        re.search(r'"uid": "(?!\$\{datasource\}|worker-orcd)', DASHBOARD.read_text(encoding="utf-8")) is None
    )
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 30
    shown = [panel for panel in panels() if panel["type"] != "row"]
    assert len({panel["title"] for panel in shown}) == len(shown)
    for panel in shown:
        assert panel["description"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels()), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
        assert one["x"] + one["w"] <= 24


@pytest.mark.needs("promtool")
def test_every_query_of_the_dashboard_can_be_read_by_prometheus(tmp_path: Path) -> None:
    """promtool checks them as rules."""
    rules = [{"record": f"panel:{n}", "expr": query} for n, (_, query) in enumerate(dashboard_queries())]
    file = tmp_path / "dashboard.json"  # JSON is YAML.
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", file)


@pytest.mark.needs("promtool")
def test_the_alerts_are_rules_that_prometheus_takes() -> None:
    """promtool checks syntax, names and templates."""
    promtool("check", "rules", ALERTS)


@pytest.mark.needs("promtool")
def test_each_alert_is_raised_by_what_it_is_for_and_by_nothing_else() -> None:
    """`tests/integration/alerts.test.yml` has the series for each."""
    promtool("test", "rules", ALERTS_TEST)


def test_no_alert_is_without_a_test() -> None:
    """For each alert there is a case that raises it and one that does not."""
    tests = ALERTS_TEST.read_text(encoding="utf-8")
    for name in alert_names(ALERTS.read_text(encoding="utf-8")):
        assert re.search(rf"alertname: {name}\n +exp_alerts:", tests), f"{name} is never raised"
        assert f"alertname: {name}, exp_alerts: []" in tests, f"{name} is always raised"


def test_the_page_says_of_each_alert_what_to_do() -> None:
    """It names no other alerts."""
    named = re.findall(r"^\| `(WorkerOrcd\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert named == alert_names(ALERTS.read_text(encoding="utf-8"))


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_configuration_on_the_page(tmp_path: Path) -> None:
    """Unchanged, together with the alerts."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "prometheus.yml").write_text(block, encoding="utf-8")
    (tmp_path / "worker-orcd.key").write_text("a-key", encoding="utf-8")
    promtool("check", "config", tmp_path / "prometheus.yml")
    with_key = block.replace("# authorization", "authorization").replace("#   credentials", "  credentials")
    assert with_key.count("#") == block.count("#") - 2
    (tmp_path / "prometheus.yml").write_text(with_key, encoding="utf-8")
    promtool("check", "config", tmp_path / "prometheus.yml")
