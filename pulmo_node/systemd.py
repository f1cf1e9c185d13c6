"""What systemd is told of the node (sd_notify(3)): ready, reloading, stopping, alive. Nothing where it did not ask."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(assignments).encode(), address)
    except OSError as exc:
        log.warning("systemd is not told %s: %s", assignments[0], exc.strerror)


def watchdog_seconds() -> float | None:
    """How often ``WATCHDOG=1`` is to be sent at least (sd_watchdog_enabled(3)); None where nobody waits for it."""
    wanted, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not wanted.isdigit() or pid not in ("", str(os.getpid())):
        return None
    return int(wanted) / 1e6
