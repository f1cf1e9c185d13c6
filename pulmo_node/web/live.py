"""Live updates by server-sent events: which studies changed or are further on. The browser then asks for its page anew.

One task asks the database for all browsers together, once a second and only while somebody listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

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
_DESTINATIONS = "destinations"


@dataclass(frozen=True, kw_only=True)
class _Position:
    """How far the history, the running analyses and the destinations are."""

    event_id: int
    progress: frozenset[tuple[int, str, str]]  # of each running job: its id, its study, how far it is
    version: int  # of what was observed of destinations


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

    async def endpoint(self, request: Request) -> Response:
        """A stream of the Study Instance UIDs that changed, with `destinations` where one of those did."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
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
        seen: _Position | None = None
        while self._listeners and not self.closed:
            try:
                seen, changed = await run_in_threadpool(self._changed_since, seen)
            except PulmoError as exc:  # a locked database: the next second sees it
                log.warning("live updates: %s", exc)
                changed = set()
            if changed:
                for listener in self._listeners:
                    listener.put_nowait(" ".join(sorted(changed)))
            await asyncio.sleep(_SECONDS)

    def _changed_since(self, seen: _Position | None) -> tuple[_Position, set[str]]:
        """Where everything is now, and what changed since; nothing counts as changed where it was not seen before."""
        store = self._parts.store
        version = self._parts.observed.now().version
        progress = frozenset((job.id, job.study_instance_uid, job.progress) for job in store.running_jobs())
        if seen is None:
            return _Position(event_id=store.latest_event_id(), progress=progress, version=version), set()
        events = store.events_after(seen.event_id)
        event_id = events[-1][0] if events else seen.event_id
        changed = {event.study_instance_uid for _, event in events}
        changed |= {study for _, study, _ in progress ^ seen.progress}
        if version != seen.version:
            changed.add(_DESTINATIONS)
        return _Position(event_id=event_id, progress=progress, version=version), changed
