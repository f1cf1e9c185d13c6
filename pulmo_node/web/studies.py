"""The list of studies, and the page of one study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pulmo_node.domain.browsing import StudyFilter
from pulmo_node.domain.deliveries import Delivery
from pulmo_node.domain.jobs import OPEN_STATES, Job
from pulmo_node.domain.series import Series
from pulmo_node.domain.studies import STUDY_STATES
from pulmo_node.ports import EventRow, StudyDetail
from pulmo_node.web.parts import NotFound, Parts, parts_of
from pulmo_node.web.patients import Patient, read_patient
from pulmo_node.web.show import page

PAGE_SIZE = 25
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_UID_BEGINNING = re.compile(r"[0-9.]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_QUERY = 64
_SHOWN_EVENTS = 500


@dataclass(frozen=True, kw_only=True)
class Query:
    """What was asked for in the form above the list, as text; what makes no sense is named in `problems`."""

    uid: str = ""
    accession: str = ""  # digest of an accession number: the number itself leads to a patient, so no address has it
    state: str = ""
    date_from: str = ""  # YYYY-MM-DD
    date_to: str = ""
    page: int = 0
    problems: tuple[str, ...] = ()

    def with_page(self, number: int) -> str:
        """The address of another page of the same list."""
        values = {name: getattr(self, name) for name in ("uid", "accession", "state", "date_from", "date_to")}
        chosen = {name: value for name, value in values.items() if value}
        return "/?" + urlencode({**chosen, **({"page": number + 1} if number else {})})


def read_query(values: Mapping[str, str]) -> Query:
    """The query string of the list."""
    texts = {name: values.get(name, "").strip()[:_LONGEST_QUERY] for name in ("uid", "accession", "state")}
    problems = []
    if texts["uid"] and not _UID_BEGINNING.fullmatch(texts["uid"]):
        problems.append("A UID has digits and points only.")
    if texts["accession"] and not _DIGEST.fullmatch(texts["accession"]):
        problems.append("An accession number is typed into the form.")
    if texts["state"] and texts["state"] not in STUDY_STATES:
        problems.append("There is no such state.")
    dates = {}
    for name in ("date_from", "date_to"):
        text = values.get(name, "").strip()
        try:
            dates[name] = date.fromisoformat(text).isoformat() if text else ""
        except ValueError:
            problems.append("A date is written as YYYY-MM-DD.")
            dates[name] = ""
    number = values.get("page", "1")
    wanted = int(number) - 1 if number.isascii() and number.isdigit() and len(number) < 8 else 0
    return Query(**texts, **dates, page=max(0, wanted), problems=tuple(problems))


def studies(request: Request) -> Response:
    """The list."""
    parts, query = parts_of(request), read_query(request.query_params)
    wanted = StudyFilter(
        state=query.state,
        uid=query.uid,
        accession_digest=query.accession,
        date_from=query.date_from.replace("-", ""),
        date_to=query.date_to.replace("-", ""),
    )
    found = parts.store.browse(wanted, page=query.page, page_size=PAGE_SIZE) if not query.problems else None
    rows = found.rows if found is not None else ()
    names = parts.sees_names(request.state.visitor)
    patients: dict[str, Patient] = {}
    if names:
        paths = parts.store.first_paths([row.study_instance_uid for row in rows])
        patients = {uid: read_patient(parts.instances.absolute(path)) for uid, path in paths.items()}
    total = found.total if found is not None else 0
    return page(
        request,
        "studies.html",
        {
            "query": query,
            "rows": rows,
            "total": total,
            "pages": max(1, -(-total // PAGE_SIZE)),
            "states": STUDY_STATES,
            "progress": {job.study_instance_uid: job.progress for job in parts.store.running_jobs()},
            "names": names,
            "patients": patients,
            "nobody": Patient(),
            "message": parts.message(request),
        },
        status=400 if query.problems else 200,
    )


def search(request: Request, form: Mapping[str, str]) -> Response:
    """What the form above the list asks for, as an address."""
    number = form.get("accession", "")
    digest = parts_of(request).catalogue.digest(number) if number.strip() else form.get("accession_digest", "")
    values = {name: text for name, text in form.items() if name in ("uid", "state", "date_from", "date_to") and text}
    return RedirectResponse("/?" + urlencode({**values, **({"accession": digest} if digest else {})}), 303)


def uid_in(request: Request) -> str:
    """The Study Instance UID of the address. Raises `NotFound`."""
    uid = str(request.path_params["uid"])
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise NotFound("There is no such study.")
    return uid


def detail_of(request: Request) -> StudyDetail:
    """The study of the address. Raises `NotFound`."""
    detail = parts_of(request).store.study(uid_in(request))
    if detail is None:
        raise NotFound("There is no such study.")
    return detail


def study(request: Request) -> Response:
    """The page of one study."""
    parts, detail = parts_of(request), detail_of(request)
    uid = detail.summary.study_instance_uid
    names = parts.sees_names(request.state.visitor)
    patient = Patient()
    if names:
        path = parts.store.first_paths([uid]).get(uid)
        patient = read_patient(parts.instances.absolute(path)) if path else patient
        # By name too: where a proxy says who it is, the next person at a browser has the same token.
        who = f"{request.state.visitor.name} {request.state.token}"
        record = partial(parts.audit, request, "study shown with the patient's name", study_instance_uid=uid)
        parts.shown.once(who, uid, parts.clock.now(), record)
    timeline = _timeline(detail.events)
    return page(
        request,
        "study.html",
        {
            "study": detail.summary,
            "names": names,
            "patient": patient,
            "series": [_series_view(series, detail) for series in detail.series],
            "deliveries": _by_destination(detail.deliveries),
            "events": timeline[-_SHOWN_EVENTS:][::-1],
            "events_left_out": max(0, len(timeline) - _SHOWN_EVENTS),
            "can_cancel": any(job.state in OPEN_STATES for job in detail.jobs),
            "can_redeliver": bool(detail.deliveries),
            "purged": parts.store.purged_series(uid),
            "ohif": ohif_link(parts, uid),
            "message": parts.message(request),
        },
    )


def ohif_link(parts: Parts, study_instance_uid: str) -> str:
    """The address of the study in the site's OHIF; empty where none is configured."""
    base = parts.config.web.ohif_url.rstrip("/")
    return f"{base}/viewer?StudyInstanceUIDs={quote(study_instance_uid)}" if base else ""


def _series_view(series: Series, detail: StudyDetail) -> dict[str, Any]:
    jobs = [job for job in detail.jobs if job.series_instance_uid == series.series_instance_uid]
    current = [job for job in jobs if job.revision == series.revision]
    return {
        "series": series,
        "jobs": [_job_view(job) for job in current],
        "earlier": [job for job in jobs if job.revision != series.revision],
    }


def _job_view(job: Job) -> dict[str, Any]:
    findings = _findings(job.findings)
    nodules = findings.get("nodules", [])
    contributions = [abs(concept["contribution"]) for nodule in nodules for concept in nodule["concepts"].values()]
    return {
        "job": job,
        "analysed": bool(findings),
        "nodules": nodules,
        "images": findings.get("images", []),
        "conclusions": findings.get("conclusions") or ["No nodules were found."],
        "cautions": findings.get("cautions", []),
        "weights": findings.get("weights_sha256", ""),
        "largest": max(contributions, default=0.0),
    }


def _findings(text: str | None) -> dict[str, Any]:
    """findings.json as this version writes it; one of an earlier version is not shown, its report has it."""
    plain = json.loads(text) if text else {}
    return plain if plain.get("schema_version", 0) >= 2 else {}


def _timeline(events: Sequence[EventRow]) -> list[EventRow]:
    """The history, images that arrived one after the other in one line."""
    lines: list[EventRow] = []
    arrived = 0
    for event in events:
        same = bool(lines) and (event.subject, event.event) == ("series", "instance") == (
            lines[-1].subject,
            lines[-1].event,
        )
        if same and lines[-1].series_instance_uid == event.series_instance_uid:
            arrived += 1
            lines[-1] = replace(event, detail=f"{arrived} images up to then, of series {event.series_instance_uid}")
        else:
            arrived = 1
            lines.append(event)
    return lines


def _by_destination(deliveries: Sequence[Delivery]) -> dict[str, list[Delivery]]:
    found: dict[str, list[Delivery]] = {}
    for delivery in deliveries:
        found.setdefault(delivery.destination, []).append(delivery)
    return dict(sorted(found.items()))
