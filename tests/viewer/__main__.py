"""`make viewer`: OHIF for a person, over the studies of the viewer tests or a folder of DICOM files, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from pydicom import dcmread
from pydicom.misc import is_dicom

from pulmo_node.ohif import wait_for_ctrl_c
from tests.viewer.stand import ViewerStand, missing
from tests.viewer.study import STUDIES, make_study


def main() -> int:
    """Start, print the addresses, wait."""
    parser = argparse.ArgumentParser(prog="make viewer", description=__doc__)
    parser.add_argument("--dicom", type=Path, help="folder with CT, SR and SEG, instead of the phantoms")
    dicom = parser.parse_args().dicom
    lacking = missing()
    if lacking is not None:
        print(lacking, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="pulmo-viewer-") as scratch, ViewerStand(Path(scratch) / "pacs") as stand:
        if dicom is not None:
            files = sorted(path for path in dicom.rglob("*") if path.is_file() and is_dicom(path))
            stand.store(files)
            for study in sorted({str(dcmread(path, stop_before_pixels=True).StudyInstanceUID) for path in files}):
                print(stand.ohif.study_url(study), flush=True)
        else:
            for name in STUDIES:
                known = make_study(Path(scratch) / name, name)
                stand.store(known.files)
                print(f"{name}: {stand.ohif.study_url(known.study_instance_uid)}", flush=True)
        print(f"all studies: {stand.ohif.url}  (Ctrl-C ends it)", flush=True)
        wait_for_ctrl_c()
    return 0


if __name__ == "__main__":
    sys.exit(main())
