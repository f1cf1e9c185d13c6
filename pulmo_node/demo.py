"""`pulmo-node demo`: a PACS and a node on free loopback ports, one chest CT through both, the results shown.

The PACS is Orthanc where it can be started on loopback, otherwise `pulmo_node.testing.SmallPacs`. What is shown is
read back from the PACS: the pictures are drawn from the masks of the segmentation object that came back.
"""

from __future__ import annotations

import html
import json
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from rich.console import Console
from rich.markup import escape

from pulmo_models.mapping import mask_from_frames
from pulmo_models.types import Mask, Volume
from pulmo_node import assemble, encode, orthanc
from pulmo_node import console as tables
from pulmo_node.app import Node
from pulmo_node.config import Config, resolve
from pulmo_node.deliver import DicomSender
from pulmo_node.domain.deliveries import Peer
from pulmo_node.domain.jobs import OPEN_STATES
from pulmo_node.errors import Permanent
from pulmo_node.ohif import OhifServer, wait_for_ctrl_c
from pulmo_node.ports import StudyDetail
from pulmo_node.synthetic import write_phantom_series
from pulmo_node.testing import SmallPacs

_PACS_AE_TITLE = "ORTHANC"
_QUIET_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 3600.0
_FOUND_WITHIN_MM = 5.0

Position = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Pacs:
    """What the demo needs of either PACS."""

    peer: Peer
    location: str
    server: orthanc.OrthancProcess | SmallPacs
    viewer: OhifServer | None = None

    def objects(self, sop_instance_uids: Collection[str]) -> dict[str, bytes]:
        """Those of the objects that it holds, by SOP Instance UID."""
        if isinstance(self.server, orthanc.OrthancProcess):
            return self.server.objects(sop_instance_uids)
        held = {stored.sop_instance_uid: stored.path for stored in self.server.stored}
        return {uid: held[uid].read_bytes() for uid in sop_instance_uids if uid in held}


def run_demo(ct: Path | None, out: Path, console: Console, *, ohif: Path | None = None) -> bool:
    """Run the demo; True where every object that the node wrote came back and every planted nodule was found.

    Args:
        ct: folder of DICOM files; None for a phantom with nodules at known places.
        out: folder for the pictures, the objects and `index.html`; made where it does not exist.
        console: where the tables go.
        ohif: folder of OHIF's distribution; the study then stays open in it until SIGINT or SIGTERM.

    Raises:
        PulmoError: the folder holds no CT, or a server cannot be started.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pulmo-demo-") as scratch:
        truth: Sequence[Position] = ()
        if ct is None:
            ct = Path(scratch) / "ct"
            truth = _write_phantom(ct)
            console.print(f"made a phantom with {len(truth)} nodules")
        with _pacs(Path(scratch) / "pacs", console, ohif) as pacs, Node(_config(Path(scratch), pacs.peer)) as node:
            files = sorted(path for path in ct.rglob("*") if path.is_file())
            studies = _send(files, pacs, node, console)
            details = [_wait(node, uid, console) for uid in studies]
            complete = bool(details)
            for detail in details:
                tables.print_events(console, detail)
                complete &= _show(detail, pacs, ct, out, console)
            findings = [json.loads(job.findings) for detail in details for job in detail.jobs if job.findings]
            if not findings:
                console.print("[bold red]no series was analysed[/]")
            found = _all_found(truth, findings, console)
            if pacs.viewer is not None:
                _keep_open(pacs.viewer, studies, console)
    return complete and bool(findings) and found


def _write_phantom(folder: Path) -> list[Position]:
    from pulmo_models.training.material.phantoms import make_demo_phantom  # noqa: PLC0415 - only the demo needs it

    phantom = make_demo_phantom()
    write_phantom_series(folder, phantom.hu, phantom.affine, name="demo")
    return [nodule.centre_lps_mm for nodule in phantom.nodules]


@contextmanager
def _pacs(folder: Path, console: Console, ohif: Path | None) -> Iterator[_Pacs]:
    missing = orthanc.available()
    if ohif is not None:
        missing = missing or orthanc.dicomweb_available()
        if missing is not None:
            raise Permanent(f"the viewer needs Orthanc: {missing}")
        server = orthanc.OrthancProcess(folder, ae_title=_PACS_AE_TITLE, dicomweb=True)
        with server, OhifServer(ohif, server.http_port) as viewer:
            yield _Pacs(peer=server.peer, location=server.location, server=server, viewer=viewer)
    elif missing is None:
        with orthanc.OrthancProcess(folder, ae_title=_PACS_AE_TITLE) as server:
            console.print(f"started Orthanc at {server.url}")
            yield _Pacs(peer=server.peer, location=server.location, server=server)
    else:
        console.print(f"{missing}; started the small test PACS instead")
        with SmallPacs(folder, ae_title=_PACS_AE_TITLE) as small:
            peer = Peer(name="pacs", ae_title=_PACS_AE_TITLE, host="127.0.0.1", port=small.port)
            yield _Pacs(peer=peer, location=str(folder), server=small)


def _keep_open(viewer: OhifServer, studies: Sequence[str], console: Console) -> None:
    """Leave the studies in the viewer until the person has seen enough."""
    for study_instance_uid in studies:
        # Soft wrap: an address that is broken over two lines cannot be clicked.
        console.print(f"open in a browser: {viewer.study_url(study_instance_uid)}", soft_wrap=True, highlight=False)
    console.print("double-click SEG or SR at the left and answer Yes; Ctrl-C ends the demo", highlight=False)
    wait_for_ctrl_c()


def _config(scratch: Path, pacs: Peer) -> Config:
    raw = {
        "node": {"port": 0, "storage": str(scratch / "node")},
        "receive": {"quiet_seconds": _QUIET_SECONDS},
        "peers": {pacs.name: {"ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port}},
    }
    return resolve(raw, base=scratch)


def _send(files: Sequence[Path], pacs: _Pacs, node: Node, console: Console) -> list[str]:
    """Store the CT in the PACS and, under the PACS's name, in the node; the Study Instance UIDs."""
    address = Peer(name="node", ae_title=node.config.node.ae_title, host="127.0.0.1", port=node.receiver.port)
    begun = time.monotonic()
    sender = DicomSender(pacs.peer.ae_title)
    for _ in sender.send_files(pacs.peer, files):
        pass  # what is no DICOM file is counted below, once
    sent = [result for result in sender.send_files(address, files) if result.error is None]
    passed_over = len(files) - len(sent)
    console.print(
        f"sent {len(sent)} images to the node in {time.monotonic() - begun:.1f} s"
        + (f"; {passed_over} files are no images that it takes" if passed_over else "")
    )
    if not sent:
        raise Permanent("the folder holds no CT image that the node takes")
    return [summary.study_instance_uid for summary in node.store.studies()]


def _wait(node: Node, study_instance_uid: str, console: Console) -> StudyDetail:
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    with console.status("") as status:
        while True:
            detail = node.store.study(study_instance_uid)
            if detail is None:
                raise Permanent(f"the node does not know study {study_instance_uid}")
            status.update(f"study {study_instance_uid}: {detail.summary.state}")
            receiving = any(series.state == "RECEIVING" for series in detail.series)
            if not receiving and not any(job.state in OPEN_STATES for job in detail.jobs):
                return detail
            if time.monotonic() > deadline:
                raise Permanent(f"study {study_instance_uid} is still {detail.summary.state}")
            time.sleep(0.2)


def _show(detail: StudyDetail, pacs: _Pacs, ct: Path, out: Path, console: Console) -> bool:
    """Print and draw what came back; True where that is everything that was written."""
    expected = {delivery.result.sop_instance_uid: delivery.result for delivery in detail.deliveries}
    came_back = pacs.objects(expected)
    missing = [result for uid, result in expected.items() if uid not in came_back]
    rows = []
    for uid, result in expected.items():
        if uid in came_back:
            path = out / f"{result.kind}-{uid}.dcm"
            path.write_bytes(came_back[uid])
            rows.append((result.kind, uid, f"{pacs.location}, copy in {path}"))
    tables.print_rows(console, ("object", "SOP Instance UID", "where"), rows, title="Results in the PACS")
    for result in missing:
        console.print(f"[bold red]{result.kind} {result.sop_instance_uid} did not come back[/]")
    sections = []
    for job in detail.jobs:
        if job.reason:
            console.print(f"{job.pipeline}: {tables.styled(job.state)}: {escape(job.reason)}")
        if job.findings is None:
            continue
        findings = json.loads(job.findings)
        tables.print_nodules(console, findings)
        kinds = [(result.kind, came_back.get(uid)) for uid, result in expected.items()]
        segmentations = [content for kind, content in kinds if kind == "seg" and content is not None]
        sections.append((findings, _draw(findings, segmentations, ct, out)))
    page = out / "index.html"
    page.write_text(_page(sections), encoding="utf-8")
    console.print(f"pictures and page: {page}")
    return not missing and any(result.kind == "sr" for result in expected.values())


def _draw(findings: Mapping[str, Any], segmentations: Sequence[bytes], ct: Path, out: Path) -> list[str]:
    """One picture a nodule, from the masks that came back; their file names by segment number."""
    series = next(
        found
        for found in assemble.find_series(ct).series
        if found.description.series_instance_uid == findings["series_instance_uid"]
    )
    image = assemble.assemble(series.paths, series.description)
    names = []
    for content in segmentations:
        segmentation = hd.seg.segread(BytesIO(content))
        if not isinstance(image, Volume) or not _belongs(segmentation, image):
            continue
        for nodule in findings["nodules"]:
            number = nodule["segment_number"]
            caption = (
                f"nodule {number}: {nodule['long_axis_mm']:.1f} x {nodule['short_axis_mm']:.1f} mm, "
                f"malignancy {nodule['malignancy_probability']:.0%}"
            )
            name = f"nodule-{number}.png"
            encode.render_mask(image, _mask(segmentation, number, image), caption).save(out / name)
            names.append(name)
    return names


def _belongs(segmentation: Any, volume: Volume) -> bool:
    referenced = {item.SeriesInstanceUID for item in segmentation.ReferencedSeriesSequence}
    return volume.series.series_instance_uid in referenced


def _mask(segmentation: Any, number: int, volume: Volume) -> Mask:
    """The mask of one segment, from the images that it was drawn on to the grid of the volume."""
    frame_of = {(frame.sop_instance_uid, frame.frame_number): k for k, frame in enumerate(volume.frames)}
    stored = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    planes = {}
    for plane, groups in zip(stored, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        shared = segmentation.SharedFunctionalGroupsSequence[0]
        identification = groups.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        if identification[0].ReferencedSegmentNumber == number:
            (source,) = groups.DerivationImageSequence[0].SourceImageSequence
            key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
            planes[frame_of[key]] = plane.astype(bool)
    full = mask_from_frames(volume, planes)
    places = np.argwhere(full)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = full[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    return Mask(origin=(int(low[0]), int(low[1]), int(low[2])), voxels=box)


def _all_found(truth: Sequence[Position], findings: Sequence[Mapping[str, Any]], console: Console) -> bool:
    """Whether every planted nodule has a finding near it; says so for each."""
    centres = [nodule["centre_lps_mm"] for found in findings for nodule in found["nodules"]]
    all_found = True
    for planted in truth:
        distances = [float(np.linalg.norm(np.subtract(planted, centre))) for centre in centres]
        nearest = min(distances, default=float("inf"))
        found = nearest <= _FOUND_WITHIN_MM
        all_found &= found
        place = ", ".join(f"{value:.1f}" for value in planted)
        verdict = f"found {nearest:.1f} mm away" if found else f"[bold red]not found[/] (nearest {nearest:.1f} mm)"
        console.print(f"planted nodule at {place} mm: {verdict}", highlight=False)
    if truth:
        extra = sum(
            all(np.linalg.norm(np.subtract(planted, centre)) > _FOUND_WITHIN_MM for planted in truth)
            for centre in centres
        )
        console.print(f"{extra} findings are not at a planted nodule", highlight=False)
    return all_found


def _page(sections: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> str:
    """A page of pictures with the numbers beside them; works without a network."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Pulmo Node: nodules</title>",
        "<style>body{font:16px sans-serif;margin:2rem;max-width:70rem}img{max-width:100%}</style>",
        "<h1>Nodules</h1><p>Research use only.</p>",
    ]
    for findings, names in sections:
        parts.append(f"<h2>Series {html.escape(findings['series_instance_uid'])}</h2>")
        if not findings["nodules"]:
            parts.append("<p>No nodules were found.</p>")
        for nodule, name in zip(findings["nodules"], names, strict=False):
            number = nodule["segment_number"]
            concepts = ", ".join(f"{key} {value['value']:.1f}" for key, value in nodule["concepts"].items())
            parts.append(
                f"<h3>Nodule {number}</h3><p>{nodule['long_axis_mm']:.1f} x {nodule['short_axis_mm']:.1f} mm, "
                f"{nodule['volume_mm3']:.0f} mm³; detection {nodule['detection_probability']:.2f}, malignancy "
                f"{nodule['malignancy_probability']:.2f}; {html.escape(concepts)}</p>"
                f"<img src='{name}' alt='Nodule {number}, axial slice with the outline of its mask'>"
            )
    return "\n".join(parts) + "</html>\n"
