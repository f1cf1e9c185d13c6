"""The viewer stand: an Orthanc with DICOMweb and OHIF on one loopback port, for the tests and for `make viewer`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pulmo_node import orthanc
from pulmo_node.deliver import DicomSender
from pulmo_node.ohif import OhifServer
from tests.viewer import tools


def missing() -> str | None:
    """None where the stand and a browser can be had (npm packages are fetched for it), otherwise what is missing."""
    lacking = orthanc.available() or orthanc.dicomweb_available()
    if lacking is not None:
        return lacking
    try:
        tools.node()
        tools.chromium()
        tools.node_modules()
        tools.ohif()
    except tools.ToolMissing as found:
        return str(found)
    return None


class ViewerStand:
    """Orthanc and OHIF; a context manager. Everything Orthanc writes lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.pacs = orthanc.OrthancProcess(folder, dicomweb=True)
        self._running = ExitStack()

    def __enter__(self) -> ViewerStand:
        with ExitStack() as started:
            started.enter_context(self.pacs)
            self.ohif = started.enter_context(OhifServer(tools.ohif(), self.pacs.http_port))
            self._running = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def store(self, paths: Sequence[Path]) -> None:
        """C-STORE files; raises `RuntimeError` where one is refused."""
        for sent in DicomSender("STAND").send_files(self.pacs.peer, paths):
            if sent.error is not None:
                raise RuntimeError(f"Orthanc did not take a file: {sent.error}")
