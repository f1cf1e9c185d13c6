"""The way of the documents: an Orthanc with the routing script of `deploy/`, the node as a service beside it, a chest
CT into the one, the results in it a moment later; and what is no chest CT stays where it is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pulmo_node import orthanc
from pulmo_node.deliver import DicomSender
from pulmo_node.ohif import OhifServer
from pulmo_node.orthanc import free_port
from tests.conftest import ROOT
from tests.ct_factory import write_datasets
from tests.encode_factory import chest_datasets
from tests.viewer import tools
from tests.viewer.driver import drive
from tests.viewer.stand import missing

DEPLOY = ROOT / "deploy"
WAIT_SECONDS = 120.0


@pytest.fixture
def ports() -> dict[str, int]:
    return {"dicom": free_port(), "page": free_port()}


@pytest.fixture
def pacs(tmp_path: Path, ports: dict[str, int]) -> Iterator[orthanc.OrthancProcess]:
    lacking = orthanc.available()
    if lacking is not None:
        pytest.skip(lacking)
    deployed = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text(encoding="utf-8"))
    extra = {
        "StableAge": 2,
        "UnknownSopClassAccepted": deployed["UnknownSopClassAccepted"],
        "DicomModalities": {"pulmo": ["PULMO", "127.0.0.1", ports["dicom"]]},
        "LuaScripts": [str(DEPLOY / "orthanc" / "route-chest-ct.lua")],
    }
    dicomweb = orthanc.dicomweb_available() is None
    with orthanc.OrthancProcess(tmp_path / "orthanc", dicomweb=dicomweb, extra=extra) as started:
        yield started


@pytest.fixture
def served(tmp_path: Path, pacs: orthanc.OrthancProcess, ports: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """The command of the unit, by a service manager that waits until it is ready."""
    configuration = tmp_path / "node.toml"
    text = (DEPLOY / "compose" / "node.toml").read_text(encoding="utf-8")
    for before, after in (
        ('bind = "0.0.0.0"', 'bind = "127.0.0.1"'),
        ('storage = "/var/lib/pulmo-node"', f'storage = "{tmp_path / "storage"}"\nport = {ports["dicom"]}'),
        ("enabled = true\n", f"enabled = true\nport = {ports['page']}\n"),
        ('host = "orthanc"', 'host = "127.0.0.1"'),
        ("port = 4242", f"port = {pacs.dicom_port}"),
        ("[receive]\n", "[receive]\nquiet_seconds = 1.0\n"),
    ):
        assert before in text, before
        text = text.replace(before, after)
    configuration.write_text(text, encoding="utf-8")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_SECONDS)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.served", "serve", "--config", str(configuration)],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            assert manager.recv(4096) == b"READY=1"
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def series_of(pacs: orthanc.OrthancProcess, study: str) -> dict[str, str]:
    """Modality of each series of a study, by its description."""
    found = pacs.find("Series", {"StudyInstanceUID": study})
    tags = [pacs.get(f"/series/{identifier}")["MainDicomTags"] for identifier in found]
    return {one.get("SeriesDescription", ""): one["Modality"] for one in tags}


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not come")


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_a_chest_ct_in_orthanc_has_results_beside_it(
    tmp_path: Path, pacs: orthanc.OrthancProcess, ports: dict[str, int]
) -> None:
    studies = {}
    for name, changes in {
        "head": {"BodyPartExamined": "HEAD", "SeriesDescription": "Brain"},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "magnetic": {"Modality": "MR"},
        "chest": {"BodyPartExamined": "HEAD", "SeriesDescription": "Thorax 1 mm"},  # the words count too
    }.items():
        datasets = chest_datasets()
        for dataset in datasets:
            for keyword, value in changes.items():
                setattr(dataset, keyword, value)
        results = list(DicomSender("CT").send_files(pacs.peer, write_datasets(datasets, tmp_path / name)))
        assert all(result.error is None for result in results)
        studies[name] = str(datasets[0].StudyInstanceUID)
    expected = {"Pulmo nodules SR": "SR", "Pulmo nodules SEG": "SEG", "Pulmo nodules key images": "OT"}
    wait_for(lambda: expected.items() <= series_of(pacs, studies["chest"]).items())
    jobs = [pacs.get(f"/jobs/{identifier}") for identifier in pacs.get("/jobs")]
    sent = [job for job in jobs if job["Type"] == "DicomModalityStore"]
    assert [job["Content"]["RemoteAet"] for job in sent] == ["PULMO"], (
        "one series, sent once; results are not sent back"
    )
    for name in ("head", "localizer", "magnetic"):
        assert len(series_of(pacs, studies[name])) == 1, name
    base = f"http://127.0.0.1:{ports['page']}"
    with httpx2.Client(base_url=base, trust_env=False) as probe:
        assert probe.get("/healthz").status_code == 200
        assert f'pulmo_instances_received_total{{calling_ae_title="{pacs.ae_title}",status="new"}} 12.0' in (
            probe.get("/metrics").text
        )


@pytest.mark.slow
@pytest.mark.viewer
@pytest.mark.usefixtures("served")
def test_the_results_open_in_ohif(tmp_path: Path, pacs: orthanc.OrthancProcess) -> None:
    lacking = missing()
    if lacking is not None:
        pytest.skip(lacking)
    datasets = chest_datasets()
    list(DicomSender("CT").send_files(pacs.peer, write_datasets(datasets, tmp_path / "ct")))
    study = str(datasets[0].StudyInstanceUID)
    wait_for(lambda: {"SR", "SEG"} <= set(series_of(pacs, study).values()))
    with OhifServer(tools.ohif(), pacs.http_port) as ohif:
        driven = drive(ohif.study_url(study), ROOT / "viewer-out" / "deploy", ("SEG", "SR"))
    assert driven.report["failures"] == []
    assert driven.report["page"] == {"errors": [], "exceptions": [], "refused": [], "left": []}
    ((segmentation,), (report,)) = driven.report["segmentations"], driven.report["reports"]
    assert [found["voxels"] > 0 for found in segmentation["content"][0]["segments"]] == [True]
    assert len(report["measurements"]) == 1


def test_the_configuration_of_orthanc_is_json_without_comments() -> None:
    """Orthanc itself takes comments; other tools that a site runs over it do not."""
    configuration = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text(encoding="utf-8"))
    assert configuration["LuaScripts"] == ["/etc/orthanc/route-chest-ct.lua"]
    assert urllib.request.url2pathname(configuration["DicomWeb"]["Root"]) == "/dicom-web/"
