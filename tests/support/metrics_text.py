"""Values of the metrics page, read by an independent parser."""

from prometheus_client.parser import text_string_to_metric_families


def metric_families(text: str) -> dict:
    return {family.name: family for family in text_string_to_metric_families(text)}


def sample_value(text: str, name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for family in metric_families(text).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) < 2
    return found[0] if found else None
