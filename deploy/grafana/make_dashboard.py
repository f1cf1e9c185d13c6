# ruff: noqa: E501 - a query is read as one line
"""Writes dashboard.json; a dashboard in JSON alone cannot be read or reviewed.

python deploy/grafana/make_dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_STATS = (  # title, expression, unit
    ("Ready to take and analyse", "min(pulmo_model_loaded)", "bool_yes_no"),
    ("Waiting for analysis", "pulmo_analysis_queue_length", "short"),
    ("Waiting for delivery", "sum(pulmo_queue_length)", "short"),
    ("Jobs failed or quarantined", 'sum(pulmo_jobs{state=~"FAILED|QUARANTINED"}) or vector(0)', "short"),
    ("Disk free", "pulmo_disk_free_bytes / pulmo_disk_size_bytes", "percentunit"),
    ("Destinations down", "count(pulmo_destination_up == 0) or vector(0)", "short"),
)
_GRAPHS = (  # title, unit, (expression, legend)...
    ("Instances received a second", "ops", ("sum by (calling_ae_title, status) (rate(pulmo_instances_received_total[5m]))", "{{calling_ae_title}} {{status}}")),
    ("Bytes received a second", "Bps", ("sum by (calling_ae_title) (rate(pulmo_received_bytes_total[5m]))", "{{calling_ae_title}}")),
    ("Associations a minute", "short", ("60 * rate(pulmo_associations_total[5m])", "{{outcome}}")),
    ("Series by state", "short", ("pulmo_series", "{{state}}")),
    ("Jobs by state and code", "short", ("pulmo_jobs", "{{state}} {{code}}")),
    ("Mean duration of the stages", "s", ("rate(pulmo_stage_seconds_sum[15m]) / rate(pulmo_stage_seconds_count[15m])", "{{stage}}")),
    ("95 % of the stages are faster than", "s", ("histogram_quantile(0.95, sum by (stage, le) (rate(pulmo_stage_seconds_bucket[15m])))", "{{stage}}")),
    ("Oldest that waits", "s", ("pulmo_queue_oldest_seconds", "{{destination}}"), ("pulmo_analysis_queue_oldest_seconds", "analysis")),
    ("Results that wait", "short", ("pulmo_queue_length", "{{destination}}")),
    ("Deliveries by destination and state", "short", ("pulmo_deliveries", "{{destination}} {{state}}")),
    ("Disk", "bytes", ("pulmo_disk_free_bytes", "free"), ("pulmo_disk_size_bytes", "size")),
    ("GPU memory", "bytes", ("pulmo_gpu_memory_used_bytes", "used, GPU {{gpu}}"), ("pulmo_gpu_memory_size_bytes", "size, GPU {{gpu}}")),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    panels = [_stat(place, *stat) for place, stat in enumerate(_STATS)]
    panels += [_graph(place, title, unit, targets) for place, (title, unit, *targets) in enumerate(_GRAPHS)]
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "Pulmo Node",
        "uid": "pulmo-node",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "tags": ["dicom"],
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def _stat(place: int, title: str, expression: str, unit: str) -> dict[str, Any]:
    return {
        "type": "stat",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"x": 4 * place, "y": 0, "w": 4, "h": 4},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [{"refId": "A", "datasource": _SOURCE, "expr": expression, "instant": True}],
    }


def _graph(place: int, title: str, unit: str, targets: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (place % 2), "y": 4 + 8 * (place // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(targets)
        ],
    }


if __name__ == "__main__":
    Path(__file__).with_name("dashboard.json").write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
