"""What the benchmarks of the whole node share: CT series of any length, and a node that serves with a real Orthanc.

The series are slices of a real chest CT of the test data, interpolated along the patient to the number that is asked
for: of CPTAC C3N-00247 (99 slices 3 mm apart, pixels of 0.56 mm, so that the lungs fill the field: more windows than
any other) or of LIDC-IDRI-0063 (133 slices 2.5 mm apart, pixels of 0.78 mm, as most of the test data). Interpolated
slices are smoother along the patient than acquired ones, and show the networks more candidates (docs/performance.md).
Without the test data it is the demo's phantom, scaled to the same matrix.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt

from benchmarks.assembly import SIDE, change_syntax
from benchmarks.report import Options, Unavailable
from pulmo_models.types import Volume
from pulmo_node import orthanc
from pulmo_node.assemble import assemble, describe
from pulmo_node.synthetic import write_phantom_series
from tests.faults.node import NodeProcess, wait_for

QUIET_SECONDS = 10.0
"""The default of the node."""

SYNTAXES: Mapping[str, int | None] = {
    "uncompressed": None,
    "JPEG Lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
}
_PROPOSED = {"uncompressed": (), "JPEG Lossless": ("-xs",), "JPEG 2000": ("-xv",), "JPEG-LS": ("-xt",)}  # to storescu
FINE, USUAL = "CPTAC C3N-00247", "LIDC-IDRI-0063"
_FOLDERS = {FINE: "ct_cptac_c3n-00247/dicom", USUAL: "ct_lidc_idri_0063/dicom"}
_LONGEST_SECONDS = 1800.0
_SLICES_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Chest:
    """A chest CT that series are made of."""

    name: str
    hu: npt.NDArray[np.float32]  # (slices, SIDE, SIDE)
    spacing_mm: tuple[float, float, float]

    def write(self, folder: Path, slices: int, uid_name: str, syntax: str = "uncompressed") -> str:
        """Write it as a series of so many slices; the Study Instance UID. Other `uid_name`s give other UIDs."""
        depth = self.spacing_mm[0] * (len(self.hu) - 1)
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3, :3] = [[0, 0, self.spacing_mm[2]], [0, self.spacing_mm[1], 0], [depth / (slices - 1), 0, 0]]
        hu = np.empty((slices, SIDE, SIDE), dtype=np.float32)
        places = np.linspace(0, len(self.hu) - 1, slices)
        for k, place in enumerate(places):
            low = min(int(place), len(self.hu) - 2)
            share = np.float32(place - low)
            hu[k] = (1 - share) * self.hu[low] + share * self.hu[low + 1]
        study = write_phantom_series(folder, hu, affine, name=uid_name)
        wanted = SYNTAXES[syntax]
        if wanted is not None:
            for path in sorted(folder.iterdir()):
                change_syntax(path, wanted)
        return study


def chest(options: Options, name: str = FINE) -> Chest:
    """A real chest by its name, or the phantom."""
    folder = options.data / _FOLDERS[name] if options.data else None
    if folder is not None and folder.is_dir():
        paths = sorted(folder.iterdir())
        volume = assemble(paths, describe(paths))
        if not isinstance(volume, Volume):
            raise SystemExit(f"{folder}: not a CT series")
        return Chest(name=name, hu=volume.hu, spacing_mm=volume.spacing_mm)
    from scipy import ndimage  # noqa: PLC0415 - without the test data only

    from pulmo_models.training.material.phantoms import make_demo_phantom  # noqa: PLC0415

    phantom = make_demo_phantom()
    factors = [1.0, SIDE / phantom.hu.shape[1], SIDE / phantom.hu.shape[2]]
    spacing = np.abs(phantom.affine[:3, :3]).max(axis=0) / factors
    hu = ndimage.zoom(phantom.hu, factors, order=1)[:, :SIDE, :SIDE].astype(np.float32)
    return Chest(name="the demo's phantom", hu=hu, spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A node that serves, in a process of its own, and the Orthanc that its results go to."""

    node: NodeProcess
    pacs: orthanc.OrthancProcess

    def send(self, folder: Path, syntax: str = "uncompressed") -> None:
        """Send a folder by `storescu`, in its order."""
        command = ["storescu", "-q", "-R", *_PROPOSED[syntax], "-aet", self.pacs.ae_title, "-aec", "PULMO", "+sd"]
        subprocess.run(
            [*command, "127.0.0.1", str(self.node.port), str(folder)],
            env={**os.environ, "TCP_NODELAY": "1"},
            stdin=subprocess.DEVNULL,
            check=True,
        )

    def wait_until_done(self, study: str) -> None:
        """Return when its one job is DONE; fails where it ends in any other way."""
        query = f"SELECT jobs.state FROM jobs JOIN series ON series.id = series_id WHERE study_instance_uid = '{study}'"  # noqa: S608
        open_states = {"QUEUED", "ENCODED"}

        def ended() -> bool:
            states = {state for (state,) in self.node.query(query)}
            return bool(states) and not states & open_states

        wait_for(ended, _LONGEST_SECONDS, f"the job of study {study}")
        states = self.node.query(query)
        if states != [("DONE",)]:
            raise SystemExit(f"study {study}: {states}; see {self.node.log}")

    def moments(self, study: str) -> dict[str, datetime]:
        """When what happened to a study, by the node's clock."""
        (last,) = self.node.query(f"SELECT last_instance_at FROM series WHERE study_instance_uid = '{study}'")  # noqa: S608
        rows = self.node.query(
            f"SELECT at, subject, event, detail FROM events WHERE study_instance_uid = '{study}' ORDER BY id"  # noqa: S608
        )
        found = {"quiet": datetime.fromisoformat(last[0]) + timedelta(seconds=QUIET_SECONDS)}
        sent = []
        for at, subject, event, _ in rows:
            if subject.startswith("job") and event in ("queued", "encoded"):
                found[event] = datetime.fromisoformat(at)
            elif subject.startswith("delivery") and event == "sent":
                sent.append(datetime.fromisoformat(at))
        kinds = self.node.query(
            "SELECT results.kind FROM deliveries JOIN results ON results.id = result_id JOIN jobs ON jobs.id = "  # noqa: S608
            "results.job_id JOIN series ON series.id = series_id "
            f"WHERE study_instance_uid = '{study}' ORDER BY deliveries.id"
        )
        found["report sent"] = sent[[kind for (kind,) in kinds].index("sr")]
        found["all sent"] = max(sent)
        return found

    def timings(self) -> list[dict[str, float]]:
        """Seconds of each step, of every job that was encoded, from the log."""
        found = []
        for line in self.node.log.read_text().splitlines():
            if " encoded: " in line:
                steps = (part.rsplit(" ", 2) for part in line.partition("; ")[2].split(", "))
                found.append({name: float(seconds) for name, seconds, _ in steps})
        return found

    def holds_report(self, study: str) -> bool:
        """Whether Orthanc has an SR of that study."""
        return bool(self.pacs.find("Series", {"StudyInstanceUID": study, "Modality": "SR"}))


@contextmanager
def scene(folder: Path, options: Options, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Scene]:
    """A node and an Orthanc in `folder`, ready; `changes` are keys of the configuration by section."""
    missing = orthanc.available() or (None if shutil.which("storescu") else "storescu is not installed (dcmtk)")
    if missing is not None:
        raise Unavailable(missing)
    settings: dict[str, dict[str, Any]] = {
        "receive": {"quiet_seconds": QUIET_SECONDS, "min_free_bytes": 0},
        "analysis": {"device": options.device},
        "results": {"key_images": True},
    }
    for section, keys in (changes or {}).items():
        settings.setdefault(section, {}).update(keys)
    with orthanc.OrthancProcess(folder / "orthanc") as pacs:
        node = NodeProcess(folder / "node", settings, peers=[pacs.peer], program="pulmo_node")
        node.start()
        try:
            yield Scene(node=node, pacs=pacs)
        finally:
            node.stop()
