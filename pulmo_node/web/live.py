"""Live updates by server-sent events: which studies changed. The browser then asks for its page again.

One task asks the database for all browsers together, once a second and only while somebody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from pulmo_node.errors import PulmoError
from pulmo_node.web.parts import Parts

log = logging.getLogger(__name__)

_SECONDS = 1.0
_MOST_LISTENERS = 100
_LONGEST_SECONDS = 600.0  # then the browser comes again, and is asked again who it is
_SILENCE_SECONDS = 15.0  # a comment then, so that proxies keep the connection
_ANALYSIS = "analysis"


class Hub:
    """Tells every listener what changed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._listeners: set[asyncio.Queue[str]] = set()
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    def close(self) -> None:
        """End every stream; the server stops."""
        self.closed = True
        for listener in self._listeners:
            listener.put_nowait("")

    async def endpoint(self, _request: Request) -> Response:
        """A stream of the Study Instance UIDs that changed."""
        if self.closed or len(self._listeners) >= _MOST_LISTENERS:
            return PlainTextResponse("Too many listeners.\n", 503)
        return StreamingResponse(
            self._stream(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _stream(self) -> AsyncIterator[str]:
        listener: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        ends = asyncio.get_running_loop().time() + _LONGEST_SECONDS
        try:
            yield "retry: 2000\n\nevent: hello\ndata: \n\n"
            while not self.closed and asyncio.get_running_loop().time() < ends:
                try:
                    changed = await asyncio.wait_for(listener.get(), _SILENCE_SECONDS)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if changed:
                    yield f"event: changed\ndata: {changed}\n\n"
        finally:
            self._listeners.discard(listener)

    async def _watch(self) -> None:
        """Runs while somebody listens."""
        seen, version = await self._position()
        while self._listeners and not self.closed:
            await asyncio.sleep(_SECONDS)
            changed: set[str] = set()
            with suppress(PulmoError):  # a locked database: the next second sees it
                events = await run_in_threadpool(self._parts.store.events_after, seen)
                if events:
                    seen = events[-1][0]
                changed = {event.study_instance_uid for _, event in events}
            now = self._parts.observed.now().version
            if now != version:
                version = now
                changed.add(_ANALYSIS)
            if changed:
                for listener in self._listeners:
                    listener.put_nowait(" ".join(sorted(changed)))

    async def _position(self) -> tuple[int, int]:
        try:
            return await run_in_threadpool(self._parts.store.latest_event_id), self._parts.observed.now().version
        except PulmoError as exc:
            log.warning("live updates: %s", exc)
            return 0, 0
