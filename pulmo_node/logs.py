"""What is logged, and that it quotes no values of a data set: they may be a patient's."""

from __future__ import annotations

import logging
import traceback
import warnings


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
