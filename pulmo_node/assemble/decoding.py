"""Decoding of compressed frames in processes of their own.

Input: one encoded frame and what a decoder must know of it. Output: its stored values. The decoders are libraries in C
and C++ that are fed with bytes of strangers: a process of its own bounds what a frame can cost. One that crashes,
takes more memory or computes longer than any real frame needs ends its process, and the frame is refused; the node
goes on. Two frames also decode at once, which threads alone cannot do, since gdcm and pyjpegls hold the interpreter
lock.

A process starts in 0.2 s, decodes frame after frame, and stays for the next series. It talks over a socket pair, and
ends when the other side closes it.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit, JPEGLSTransferSyntaxes

from pulmo_node.errors import Transient

IntegerArray = npt.NDArray[np.integer]

PROCESSES = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""How many frames are decoded at once; further idle processes are ended."""

_BASE_BYTES = 384 << 20  # 75 MB are taken before the first frame
_BYTES_A_PIXEL = 32  # openjpeg keeps 4 bytes for the samples, as many for the coefficients, and their copies
_BASE_SECONDS = 2  # of processor time; 512 x 512 pixels take 0.003 to 0.06 s
_PIXELS_A_SECOND = 1_000_000  # the slowest decoder manages 4 million
_SILENCE_SECONDS = 120.0  # by the clock: no decoder waits for anything

_MAIN = """
import sys
sys.path[:] = sys.argv[2:]
from pulmo_node.assemble.decoding import serve
serve(int(sys.argv[1]))
"""


class DecodingError(RuntimeError):
    """A frame that no decoder accepts, or that brought a decoder down; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """What a decoder must know of a greyscale frame. PS3.3 C.7.6.3."""

    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    photometric_interpretation: str


def decode(encoded: bytes, layout: FrameLayout) -> IntegerArray:
    """Decode one frame in a process of its own, to its stored values ``(rows, columns)``. Safe in several threads.

    Raises:
        DecodingError: the frame cannot be decoded, or not within time and memory.
        Transient: no process can be started.
    """
    decoder = _take()
    try:
        values = decoder.decode(encoded, layout)
    except DecodingError:
        _give_back(decoder)
        raise
    except BaseException:
        decoder.end()  # in the middle of an answer; it is of no further use
        raise
    _give_back(decoder)
    return values


_idle: list[_Decoder] = []
_idle_lock = threading.Lock()


def _take() -> _Decoder:
    with _idle_lock:
        while _idle:
            decoder = _idle.pop()
            if decoder.running:
                return decoder
            decoder.end()  # ended while idle, for no fault of the frame that comes
    return _Decoder()


def _give_back(decoder: _Decoder) -> None:
    if decoder.running:
        with _idle_lock:
            if len(_idle) < PROCESSES:
                _idle.append(decoder)
                return
    decoder.end()


@atexit.register
def end_idle() -> None:
    """End the processes that wait for frames; the next frame starts a new one."""
    with _idle_lock:
        while _idle:
            _idle.pop().end()


class _Decoder:
    """One process, from this side."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the node, which then closes the connection
            )
        except OSError as exc:
            ours.close()
            raise Transient(f"cannot start a process to decode images: {exc.strerror or exc}") from exc
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())

    @property
    def running(self) -> bool:
        """Whether the process is there to decode."""
        return not self._connection.closed and self._process.poll() is None

    def decode(self, encoded: bytes, layout: FrameLayout) -> IntegerArray:
        try:
            self._connection.send_bytes(json.dumps(asdict(layout)).encode())
            self._connection.send_bytes(encoded)
            if not self._connection.poll(_SILENCE_SECONDS):
                self.end()
                raise DecodingError(f"the decoder did not answer in {_SILENCE_SECONDS:.0f} s")
            answer = json.loads(self._connection.recv_bytes())
            if "error" in answer:
                raise DecodingError(answer["error"])
            values = np.empty((layout.rows, layout.columns), dtype=answer["dtype"])
            if self._connection.recv_bytes_into(values.data.cast("B")) != values.nbytes:
                raise DecodingError("the decoder returned too few pixels")
        except (EOFError, ConnectionError) as exc:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)  # it closes before it has quite ended
            self.end()
            raise DecodingError(_how_it_ended(self._process.returncode)) from exc
        return values

    def end(self) -> None:
        """Close the connection and end the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _how_it_ended(returncode: int) -> str:
    if returncode == -signal.SIGXCPU:
        return "the decoder computed longer than any real frame of this size needs, and was stopped"
    if returncode < 0:
        with suppress(ValueError):
            return f"it crashed the decoder ({signal.Signals(-returncode).name})"
    return f"the decoder's process ended with status {returncode}"


def serve(descriptor: int) -> None:
    """The process: frames in, stored values out, until the other side closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries chatter, and may quote what they stumble over
    connection = Connection(descriptor)
    with suppress(EOFError, ConnectionError):
        while True:
            layout = FrameLayout(**json.loads(connection.recv_bytes()))
            encoded = connection.recv_bytes()
            _set_limits(layout)
            try:
                values = decode_here(encoded, layout)
                if values.shape != (layout.rows, layout.columns):
                    raise ValueError(f"the frame decodes to {values.shape}, not {(layout.rows, layout.columns)}")
            except Exception as exc:  # noqa: BLE001
                # Boundary: whatever a decoder throws on a stranger's bytes, they cannot be decoded.
                connection.send_bytes(json.dumps({"error": (str(exc) or type(exc).__name__)[:1000]}).encode())
                continue
            connection.send_bytes(json.dumps({"dtype": values.dtype.str}).encode())
            connection.send_bytes(np.ascontiguousarray(values).data.cast("B"))


def _set_limits(layout: FrameLayout) -> None:
    """Bound memory and processor time of the frame that comes next."""
    pixels = layout.rows * layout.columns
    seconds = int(time.process_time()) + 1 + _BASE_SECONDS + pixels // _PIXELS_A_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_DATA, (_BASE_BYTES + _BYTES_A_PIXEL * pixels, resource.RLIM_INFINITY))


def decode_here(encoded: bytes, layout: FrameLayout) -> IntegerArray:
    """Decode one frame in this process. Raises whatever the decoders raise."""
    syntax = UID(layout.transfer_syntax)
    if syntax == JPEGExtended12Bit and layout.bits_stored > 8:
        return _decode_jpeg_12_bit(encoded, layout)
    decoder = get_decoder(syntax)
    options = asdict(layout) | {"number_of_frames": 1, "samples_per_pixel": 1, "pixel_keyword": "PixelData"}
    del options["transfer_syntax"]
    item = encapsulate([encoded])
    values: IntegerArray
    if syntax in JPEGLSTransferSyntaxes and "pyjpegls" in decoder.available_plugins:
        # Twice as fast as gdcm, which pydicom tries first; what it refuses, gdcm may still read.
        with suppress(RuntimeError):
            values, _ = decoder.as_array(item, index=0, raw=True, decoding_plugin="pyjpegls", **options)
            return values
    values, _ = decoder.as_array(item, index=0, raw=True, **options)
    return values


def _decode_jpeg_12_bit(encoded: bytes, layout: FrameLayout) -> IntegerArray:
    """12-bit JPEG Extended. pydicom asks no plug-in for it but a GPL one; gdcm decodes it since version 3."""
    import gdcm  # noqa: PLC0415  # 30 ms that no other frame needs

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(encoded)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType(layout.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    bits = layout.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, layout.pixel_representation))
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), dtype="<u2")
    return values.reshape(layout.rows, layout.columns)
