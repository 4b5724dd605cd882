"""Samples of the /metrics response, read with the parser of prometheus_client."""

from prometheus_client.parser import text_string_to_metric_families


def metric_families(text: str) -> dict:
    return {family.name: family for family in text_string_to_metric_families(text)}


def sample_value(text: str, name: str, **labels: str) -> float | None:
    """Returns the value of the sample with exactly these labels, or None."""
    values = [
        sample.value
        for family in metric_families(text).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(values) < 2
    return values[0] if values else None
