"""The page over a real node: what it shows is what the database and the images say."""

from __future__ import annotations

import io
import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image

from pulmo_models.network_sets import read_networks
from pulmo_node import web
from pulmo_node.app import Node, replaced
from pulmo_node.domain.browsing import StudyFilter
from pulmo_node.errors import Transient
from pulmo_node.testing import SmallPacs
from tests.fake_pipeline import REJECTED_DESCRIPTION, fake_pipeline
from tests.made_up_sets import drawing_regressor, write_network_set
from tests.web.served import Visitor, logged_in, page_configuration, running, send, wait_for, wait_for_state

pytestmark = pytest.mark.usefixtures("fake_pipeline")
__all__ = ["fake_pipeline"]


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path / "pacs") as running_pacs:
        yield running_pacs


@pytest.fixture
def node(tmp_path: Path, pacs: SmallPacs) -> Iterator[Node]:
    with running(page_configuration(tmp_path, pacs)) as started:
        yield started


@pytest.fixture
def otto(node: Node) -> Iterator[Visitor]:
    with logged_in(node, "otto") as visitor:
        yield visitor


def _named(dataset: object) -> None:
    dataset.PatientName = "Doe^Jane"  # type: ignore[attr-defined]
    dataset.PatientID = "ID-4711"  # type: ignore[attr-defined]
    dataset.AccessionNumber = "ACC 17"  # type: ignore[attr-defined]
    dataset.StudyDate = "20260203"  # type: ignore[attr-defined]


def _refuses(*_: object, **__: object) -> None:
    raise Transient("the disk is full")


def test_a_study_from_the_list_to_its_nodule(
    node: Node, otto: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = send(node, tmp_path / "ct", _named)
    wait_for_state(node, study, "DONE")
    with monkeypatch.context() as full:
        full.setattr(node.observation.journal, "record", _refuses)
        for _ in range(2):  # nor at the second try
            answer = otto.get(f"/studies/{study}")
            assert (answer.status_code, "Doe" in answer.text) == (503, False), "it could not be in the audit trail"
    wait_for(lambda: node.store.browse(StudyFilter(date_from="20260203"), page=0, page_size=5).total)
    listed = otto.get("/").text
    for shown in (study, "Doe, Jane", "ACC 17", "2026-02-03", "DONE"):
        assert shown in listed
    page = otto.get(f"/studies/{study}").text
    detail = node.store.study(study)
    assert detail is not None
    (job,) = detail.jobs
    (nodule,) = json.loads(job.findings or "")["nodules"]
    for shown in (
        "ID-4711",
        f"{nodule['volume_mm3']:.0f}",
        f"{100 * nodule['malignancy_probability']:.0f} %",
        "pacs0",
        "sent",
    ):
        assert shown in page or shown.lower() in page
    for name, concept in nodule["concepts"].items():
        words = "internal structure" if name == "internalStructure" else name
        assert re.search(rf"{words}</th><td class=\"n\">{concept['value']:.2f}</td>", page), name
    assert "12 images up to then, of series" in page
    picture = otto.get(f"/studies/{study}/jobs/{job.id}/nodules/1.png")
    assert picture.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB")).astype(int)
    assert pixels.shape == (240, 720, 3)
    outline = (pixels[..., 0] > 200) & (pixels[..., 1] < 130)
    for left in (0, 240, 480):  # the mask is outlined in the middle of every plane
        found = np.argwhere(outline[:, left : left + 240])
        assert len(found) > 8
        assert np.abs(found.mean(axis=0) - 120).max() < 40
    assert otto.get(f"/studies/{study}/jobs/{job.id}/nodules/2.png").status_code == 404
    assert node.config.audit_file.read_text().count("shown with the patient's name") == 1


def test_two_people_at_one_browser_are_both_in_the_audit_trail(tmp_path: Path) -> None:
    web = {"access": "proxy", "trusted_proxies": ["127.0.0.1/32"], "patient_names": ["viewer"]}
    with running(page_configuration(tmp_path, web=web), users=False) as node, Visitor(node) as browser:
        study = send(node, tmp_path / "ct", _named)
        wait_for_state(node, study, "DONE")
        for name in ("ada", "bob", "bob"):
            assert "Doe, Jane" in browser.get(f"/studies/{study}", headers={"X-Remote-User": name}).text
        lines = [json.loads(line) for line in node.config.audit_file.read_text().splitlines()]
        assert [line["who"] for line in lines if line["action"].startswith("study shown")] == ["page ada", "page bob"]


def test_findings_without_masks_and_without_nodules_are_shown(node: Node, otto: Visitor, tmp_path: Path) -> None:
    """What detectors of boxes, radiograph pipelines and the lung localisation leave in findings.json."""
    study = send(node, tmp_path / "ct")
    wait_for_state(node, study, "DONE")
    detail = node.store.study(study)
    assert detail is not None
    plain = json.loads(detail.jobs[0].findings or "")
    unknown = dict.fromkeys(("volume_mm3", "mean_hu", "min_hu", "max_hu", "malignancy_probability"))
    box = {**plain["nodules"][0], **unknown, "concepts": {}, "box_lps_mm": [[0, 0, 0], [1, 1, 1]]}
    box["detection_probability"] = 0.8765
    score = {"label": "Edema", "tracking_uid": "2.25.1", "probability": 0.61, "threshold": 0.5, "positive": True}
    estimate = {"label": "CXR-Lung-Risk", "value": 61.24, "unit": "a", "group": "below 65", "note": "No age"}
    film = {"view_position": "PA", "class_scores": [score], "estimates": [estimate], "cautions": []}

    def shown(**changes: object) -> str:
        with sqlite3.connect(node.config.storage / "pulmo.sqlite") as database:
            database.execute("UPDATE jobs SET findings = ?", [json.dumps({**plain, **changes})])
        database.close()
        return otto.get(f"/studies/{study}").text

    page = shown(nodules=[box])
    assert "Nodule 1: detection 88 %" in page
    assert "nodules/1.png" not in page
    assert "Concepts of nodule" not in page
    page = shown(nodules=[], images=[film])
    for words in ("view PA", "61 %", "present (50 %)", "61.2 a", "below 65. No age"):
        assert words in page, words
    page = shown(nodules=[], conclusions=["Left lung: 2100 ml."])
    assert "Left lung: 2100 ml." in page
    assert "No nodules were found." not in page
    assert "No nodules were found." in shown(nodules=[], conclusions=[])


FILTERS = {
    "accession=ACC+17": True,
    "accession=+ACC+17+&state=REJECTED": True,
    "accession=ACC": False,  # a whole number finds, the beginning of one does not
    "date_from=2026-02-01&date_to=2026-02-28": True,
    "date_from=2026-02-04": False,
    "date_to=2026-02-02": False,
    "state=REJECTED": True,
    "state=DONE": False,
    "state=REJECTED&accession=other": False,
}


def test_the_filter_finds_what_it_should(node: Node, otto: Visitor, tmp_path: Path) -> None:
    def change(dataset: object) -> None:
        _named(dataset)
        dataset.SeriesDescription = REJECTED_DESCRIPTION  # type: ignore[attr-defined]

    study = send(node, tmp_path / "ct", change)
    wait_for_state(node, study, "REJECTED")
    wait_for(lambda: node.store.browse(StudyFilter(date_from="20260203"), page=0, page_size=5).total)
    for query, found in FILTERS.items():
        otto.get("/")
        answer = otto.post("/search", **dict(parse_qsl(query)))
        assert "ACC" not in answer.headers["location"], "an address stays in histories and logs"
        listed = otto.get(answer.headers["location"]).text
        assert (study in listed) == found, query
        assert "ACC 17" not in listed.partition("<table>")[0]
    assert otto.get("/?accession=ACC+17").status_code == 400
    assert study in otto.get(f"/?uid={study[:12]}").text
    assert "NO_LUNGS" in otto.get(f"/studies/{study}").text


def test_the_accession_number_is_nowhere_in_the_database(node: Node, tmp_path: Path) -> None:
    study = send(node, tmp_path / "ct", _named)
    wait_for_state(node, study, "DONE")
    wait_for(lambda: node.store.browse(StudyFilter(date_from="20260203"), page=0, page_size=5).total)
    stored = b"".join(path.read_bytes() for path in node.config.storage.glob("pulmo.sqlite*"))
    assert b"ACC 17" not in stored
    assert b"Doe" not in stored


def test_requeue_redeliver_cancel(node: Node, otto: Visitor, pacs: SmallPacs, tmp_path: Path) -> None:
    study = send(node, tmp_path / "ct")
    wait_for_state(node, study, "DONE")
    for action, event in (("requeue", "requeued"), ("redeliver", "redelivered")):
        otto.get(f"/studies/{study}")
        answer = otto.post(f"/studies/{study}/{action}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{study}")
        assert "1 " in re.findall(r'class="message" role="status">([^<]+)<', otto.get(f"/studies/{study}").text)[0]
        detail = node.store.study(study)
        assert detail is not None
        assert event in [one.event for one in detail.events]
        wait_for_state(node, study, "DONE")
    otto.post(f"/studies/{study}/cancel")
    script = (Path(web.__file__).parent / "static" / "live.js").read_text()
    (header,) = re.findall(r'headers: \{ "([^"]+)": "1" \}', script)
    left = otto.get(f"/studies/{study}", headers={header: "1"}).text
    assert "jobs cancelled" not in left, "the page that is being left takes no message from the one that comes"
    assert "0 jobs cancelled" in otto.get(f"/studies/{study}").text
    lines = [json.loads(line) for line in node.config.audit_file.read_text().splitlines()]
    mine = {line["action"]: line for line in lines if line["who"] == "page otto"}
    for action in ("requeue", "redeliver", "cancel"):
        assert mine[action]["study_instance_uid"] == study


def test_a_destination_goes_down_and_comes_up_again(node: Node, otto: Visitor, pacs: SmallPacs, tmp_path: Path) -> None:
    assert "not asked since the start" in otto.get("/destinations").text
    otto.post("/destinations/pacs0/echo")
    assert re.search(r"pacs0 answered in \d+ ms", otto.get("/destinations").text)
    port = pacs.port
    pacs.__exit__(None, None, None)
    study = send(node, tmp_path / "ct")
    wait_for_state(node, study, "ENCODED")
    wait_for(lambda: "DOWN" in otto.get("/destinations").text)
    page = otto.get("/destinations").text
    waiting = int(re.findall(r'<td class="n">(\d+)</td>', page)[0])
    assert waiting == node.store.counts().queues[0].waiting > 0
    with SmallPacs(tmp_path / "again", port=port):
        wait_for_state(node, study, "DONE")
        assert "answered at" in otto.get("/destinations").text


def test_pipelines_and_weights_are_shown_with_their_hashes(node: Node, otto: Visitor) -> None:
    from pulmo_models.weights import load_set  # noqa: PLC0415

    shipped = load_set("pulmo-node-3")
    page = otto.get("/pipelines").text
    for shown in ("ct-nodules", shipped.sha256, shipped.stage1.digest, shipped.stage2.digest, "CC-BY-4.0"):
        assert shown in page, shown
    assert "pulmo-node weights fetch monai-luna16" in page, "how to get weights of a pipeline that is off"


def test_a_set_of_another_pipeline_is_shown(node: Node, otto: Visitor) -> None:
    folder = node.config.weights_folder
    folder.mkdir(parents=True, exist_ok=True)
    network = drawing_regressor("efficientnet_b0")
    manifest = write_network_set(folder, "ct-lungs", {"efficientnet_b0": network}, "ct-lungs")
    found = read_networks(manifest)
    page = otto.get("/pipelines").text
    assert found.sha256 in page
    assert found.networks["efficientnet_b0"].digest in page


def test_events_of_the_stream_name_the_study_that_changed(node: Node, otto: Visitor, tmp_path: Path) -> None:
    changed: set[str] = set()
    with otto.client.stream("GET", "/live") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        next(line for line in lines if line == "event: hello")
        study = send(node, tmp_path / "ct")
        while not {study, "destinations"} <= changed:
            line = next(lines)
            changed |= set(line.removeprefix("data: ").split()) if line.startswith("data: ") else set()


def test_a_new_configuration_takes_the_page_along(tmp_path: Path) -> None:
    config = page_configuration(tmp_path)
    with running(config) as node, logged_in(node, "otto") as otto:
        assert otto.get("/").status_code == 200
        again = page_configuration(
            tmp_path, web={"port": node.observation.web_port, "ohif_url": "https://ohif.example"}
        )
        successor = replaced(node, lambda: again)
        assert successor is not node
        try:
            answer = otto.get(f"/studies/{send(successor, tmp_path / 'ct')}")
            assert "https://ohif.example" in answer.text, "the same port, the session lasts, the new one answers"
            assert otto.get("/healthz").status_code == 200
        finally:
            successor.stop_receiving()
            successor.stop_working()


def test_a_page_whose_port_is_taken_leaves_the_node_as_it_was(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, running(page_configuration(tmp_path)) as node:
        unlucky = page_configuration(tmp_path, web={"port": taken.getsockname()[1]})
        assert replaced(node, lambda: unlucky) is node
        with logged_in(node, "otto") as otto:
            assert otto.get("/").status_code == 200
        send(node, tmp_path / "ct")


def test_a_page_beyond_the_last_is_empty(node: Node, otto: Visitor) -> None:
    assert "No study is like that" in otto.get("/?page=99").text
    assert otto.get("/?page=-1").status_code == 200
    assert otto.get("/?uid=1.2%27--").status_code == 400
    assert otto.get("/?date_from=yesterday").status_code == 400


def test_every_time_is_shown_in_utc(node: Node, otto: Visitor, tmp_path: Path) -> None:
    study = send(node, tmp_path / "ct")
    shown = re.findall(r'<time datetime="([^"]+)">', otto.get(f"/studies/{study}").text)
    assert shown
    assert all(datetime.fromisoformat(each).tzinfo == UTC for each in shown)
