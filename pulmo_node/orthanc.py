"""A throw-away Orthanc for the demo and the tests: free ports, loopback only, storage in a folder of its own.

Debian's Orthanc has no option for the address that it listens on, so a small library is preloaded that turns a bind
to every address into a bind to loopback. It needs a C compiler; where there is none, `available()` says so, since an
Orthanc that is open to the network must not be started for a demo.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pulmo_node.domain.deliveries import Peer
from pulmo_node.errors import Permanent, Transient

_SHIM_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

int bind(int descriptor, const struct sockaddr *address, socklen_t length)
{
    bind_function next = (bind_function)dlsym(RTLD_NEXT, "bind");
    if (address->sa_family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)address;
        if (v4->sin_addr.s_addr == htonl(INADDR_ANY))
            v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;
        if (IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr))
            v6->sin6_addr = in6addr_loopback;
    }
    return next(descriptor, address, length);
}
"""

_PORTS = range(20_000, 32_000)
_TAKEN: list[socket.socket] = []  # one for every port that was given away
_PLUGINS = Path("/usr/share/orthanc/plugins")
_DICOMWEB_PLUGIN = "libOrthancDicomWeb.so"


def available() -> str | None:
    """None where an Orthanc can be started on loopback, otherwise what is missing."""
    if _program() is None:
        return "Orthanc is not installed (Debian package orthanc)"
    if shutil.which("cc") is None:
        return "no C compiler to keep Orthanc on loopback (Debian packages gcc and libc6-dev)"
    return None


def dicomweb_available() -> str | None:
    """None where Orthanc can speak DICOMweb, which a web viewer needs; otherwise what is missing."""
    if not (_PLUGINS / _DICOMWEB_PLUGIN).exists():
        return "Orthanc's DICOMweb plugin is not installed (Debian package orthanc-dicomweb)"
    return None


def _program() -> str | None:
    return shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")


class OrthancProcess:
    """A running Orthanc; a context manager. Everything it writes lies in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ORTHANC",
        dicomweb: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`extra` is merged into Orthanc's configuration."""
        self.folder = folder
        self._extra = dict(extra or {})
        self.ae_title = ae_title
        self.dicom_port = free_port()
        self.http_port = free_port()
        self._dicomweb = dicomweb
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process; only after `start`."""
        if self._process is None:
            raise RuntimeError("Orthanc was not started")
        return self._process.pid

    @property
    def url(self) -> str:
        """Root of the REST interface and of Orthanc's own pages."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def location(self) -> str:
        """Where a person finds what it stores."""
        return self.url

    @property
    def peer(self) -> Peer:
        """It, as a destination."""
        return Peer(name="pacs", ae_title=self.ae_title, host="127.0.0.1", port=self.dicom_port)

    def __enter__(self) -> OrthancProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            Permanent: it is not installed, or ended at once (its log is named).
            Transient: it did not answer in time.
        """
        missing = available()
        program = _program()
        if missing is not None or program is None:
            raise Permanent(missing or "Orthanc is not installed")
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(), indent=1))
        log = self.folder / "orthanc.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [program, str(configuration)],
                # DCMTK inside Orthanc waits for delayed acknowledgements unless told not to.
                env={**os.environ, "LD_PRELOAD": str(loopback_library(self.folder)), "TCP_NODELAY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Permanent(f"Orthanc ended with status {self._process.returncode}; see {log}")
            try:
                self.get("/system")
            except OSError:
                time.sleep(0.1)
            else:
                return
        self.stop()
        raise Transient(f"Orthanc did not answer within 60 s; see {log}")

    def stop(self) -> None:
        """End the process that `start` began."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def get(self, path: str) -> Any:
        """JSON of a REST resource. Raises `OSError` where it cannot be had."""
        return json.loads(self._read(urllib.request.Request(self.url + path)))  # noqa: S310 - own loopback URL

    def delete(self, path: str) -> None:
        """Remove a REST resource. Raises `OSError` where it cannot be removed."""
        self._read(urllib.request.Request(self.url + path, method="DELETE"))  # noqa: S310 - own loopback URL

    def find(self, level: str, query: dict[str, str]) -> list[str]:
        """Orthanc's identifiers of what matches at "Study", "Series" or "Instance" level."""
        body = json.dumps({"Level": level, "Query": query}).encode()
        request = urllib.request.Request(self.url + "/tools/find", data=body, method="POST")  # noqa: S310
        found = json.loads(self._read(request))
        return [str(identifier) for identifier in found]

    def objects(self, sop_instance_uids: Iterable[str]) -> dict[str, bytes]:
        """Part 10 bytes of those of the objects that it holds, by SOP Instance UID."""
        found: dict[str, bytes] = {}
        for uid in sop_instance_uids:
            for identifier in self.find("Instance", {"SOPInstanceUID": uid}):
                request = urllib.request.Request(f"{self.url}/instances/{identifier}/file")  # noqa: S310
                found[uid] = self._read(request)
        return found

    @staticmethod
    def _read(request: urllib.request.Request) -> bytes:
        # No proxy of the environment: the server is this process's own child on loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            return bytes(response.read())

    def _configuration(self) -> dict[str, Any]:
        storage = str(self.folder / "storage")
        configuration: dict[str, Any] = {
            "Name": "Pulmo demo",
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.http_port,
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowEcho": True,
            "UnknownSopClassAccepted": True,
            "StableAge": 2,
            "Plugins": [],
        }
        if self._dicomweb:
            names = (_DICOMWEB_PLUGIN, "libOrthancGdcm.so")
            configuration["Plugins"] = [str(_PLUGINS / name) for name in names if (_PLUGINS / name).exists()]
            configuration["DicomWeb"] = {"Enable": True, "Root": "/dicom-web/", "EnableWado": True}
        return configuration | self._extra


def loopback_library(folder: Path) -> Path:
    """Build, in `folder`, the library that keeps the program that preloads it (LD_PRELOAD) on loopback.

    Raises:
        Permanent: the compiler refuses.
    """
    library = folder / "loopback.so"
    source = folder / "loopback.c"
    source.write_text(_SHIM_SOURCE)
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
            check=True,
            capture_output=True,
        )
    except subprocess.CalledProcessError as exc:
        raise Permanent(f"the compiler refused {source}: {exc.stderr.decode(errors='replace')}") from exc
    return library


def free_port() -> int:
    """A TCP port of loopback that nobody listens on.

    Outside of the range from which systems take ports for outgoing connections (from 32768 on), so that it is still
    free when somebody comes to listen on it; and never one that this process, or another one that still runs, was
    given here before. The UDP port of the same number, which stays open, is the sign for that.
    """
    for port in random.SystemRandom().sample(_PORTS, k=min(100, len(_PORTS))):
        taken = socket.socket(type=socket.SOCK_DGRAM)
        try:
            taken.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
        else:
            _TAKEN.append(taken)
            return port
    raise Permanent("no free TCP port on loopback")
