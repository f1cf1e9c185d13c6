"""What an open port calls: the receiver of the moment, which may be replaced while associations are in progress."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Front(Generic[R]):
    """Stands between the handlers of a server and the receiver behind them."""

    def __init__(self, receiver: R) -> None:
        self._receiver = receiver
        self._running: Counter[int] = Counter()  # calls in progress, by the id of their receiver
        self._changed = threading.Condition()

    def call(self, do: Callable[[R], T]) -> T:
        """Let the receiver of this moment do something; it does that to its end, whoever takes its place."""
        with self._changed:
            receiver = self._receiver
            self._running[id(receiver)] += 1
        try:
            return do(receiver)
        finally:
            with self._changed:
                self._running[id(receiver)] -= 1
                self._changed.notify_all()

    def replace(self, receiver: R, seconds: float) -> None:
        """From now on this receiver is called; wait that long for what the one before is still doing."""
        with self._changed:
            before, self._receiver = self._receiver, receiver
            self._changed.wait_for(lambda: not self._running[id(before)], seconds)
