"""A thread that ends by an error says so in one line, without the text of the error."""

from __future__ import annotations

import threading

import pytest

from pulmo_node import logs
from tests.network_factory import watched


def test_a_thread_that_an_error_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ValueError("DOE^JOHN")

    monkeypatch.setattr(threading, "excepthook", logs.thread_ended)
    with watched("pulmo_node.logs") as log:
        thread = threading.Thread(target=broken, name="reactor")
        thread.start()
        thread.join()
    assert log.lines == ["pulmo_node.logs thread reactor ended: unexpected ValueError"]
    assert "DOE" not in capfd.readouterr().err
