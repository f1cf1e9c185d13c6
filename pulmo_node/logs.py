"""What is logged, and that it quotes no values of a data set: they may be a patient's."""

from __future__ import annotations

import logging
import threading
import traceback
import warnings

log = logging.getLogger(__name__)


def configure(level: str) -> None:
    """One line per event on standard error; libraries only from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("pulmo_node").setLevel(level)
    logging.getLogger("pulmo_models").setLevel(level)
    quiet_libraries()


def quiet_libraries() -> None:
    """Let pydicom say nothing of the values that it reads."""
    # It quotes the values that it complains of, and they may be a patient's.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


def places(exc: BaseException) -> str:
    """Where an unexpected error arose: type and frames, without its text, which may quote a data set."""
    frames = "".join(traceback.format_tb(exc.__traceback__))
    return f"{type(exc).__name__} at\n{frames}".rstrip()


def thread_ended(failure: threading.ExceptHookArgs) -> None:
    """For `threading.excepthook`: one line for a thread that an error ended, such as pynetdicom's by a peer's bytes."""
    name = failure.thread.name if failure.thread is not None else "?"
    log.error("thread %s ended: unexpected %s", name, failure.exc_type.__name__)
