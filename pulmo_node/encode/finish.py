"""The last step of every result object: patient and study, character set, dates, fixed UIDs, bytes.

highdicom stamps the clock and random UIDs into what it builds; here they are replaced by values of the context, so
that equal findings give equal bytes.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from io import BytesIO

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from pulmo_node.encode.identity import EncodedObject, ResultContext, library_errors

_OPTIONAL_REFERENCES = ("ReferencedStudySequence", "ReferencedPatientSequence")
_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")


def finish(
    built: hd.base.SOPClass, kind: str, header: Dataset, context: ResultContext, organization_uid: str | None = None
) -> EncodedObject:
    """Complete an object that highdicom built and write it as a Part 10 file.

    `header` is the full header of a source image; `organization_uid` replaces the random dimension organisation UID
    of a multi-frame object.

    Raises:
        Permanent: a value cannot be written.
    """
    with library_errors(kind.upper(), context.series_instance_uid):
        _copy_patient_and_study(built, header)
        _stamp(built, header, context)
        if organization_uid is not None:
            for sequence in (built.DimensionOrganizationSequence, built.DimensionIndexSequence):
                for item in sequence:
                    item.DimensionOrganizationUID = organization_uid
        buffer = BytesIO()
        built.save_as(buffer, enforce_file_format=True)
    return EncodedObject(
        kind=kind,
        sop_class_uid=str(built.SOPClassUID),
        sop_instance_uid=str(built.SOPInstanceUID),
        series_instance_uid=str(built.SeriesInstanceUID),
        content=buffer.getvalue(),
    )


def _copy_patient_and_study(built: hd.base.SOPClass, header: Dataset) -> None:
    if header.get("SpecificCharacterSet"):
        built.SpecificCharacterSet = header.SpecificCharacterSet
    built.copy_patient_and_study_information(header)
    for keyword in _OPTIONAL_REFERENCES:
        if any(not item.get(needed) for item in built.get(keyword, ()) for needed in _REFERENCE):
            delattr(built, keyword)  # type 3 as a whole: left out rather than copied broken


def _stamp(built: hd.base.SOPClass, header: Dataset, context: ResultContext) -> None:
    offset = _source_offset(header)
    when = context.content_datetime.astimezone(offset)  # without one in the machine's zone: such times are local ones
    if offset is not None:  # (0008,0201) says how to read all times of an object, the copied study time too
        built.TimezoneOffsetFromUTC = f"{when:%z}"
    stems = ("InstanceCreation", "Series", "PresentationCreation" if "PresentationCreationDate" in built else "Content")
    for stem in stems:
        setattr(built, f"{stem}Date", f"{when:%Y%m%d}")
        setattr(built, f"{stem}Time", f"{when:%H%M%S}")
    for item in built.ContributingEquipmentSequence:
        if item.get("ManufacturerModelName") == "highdicom":
            item.ContributionDateTime = DT(f"{context.content_datetime:%Y%m%d%H%M%S%z}")


def _source_offset(header: Dataset) -> timezone | None:
    text = str(header.get("TimezoneOffsetFromUTC") or "")
    try:
        offset = datetime.strptime(text, "%z").utcoffset()
    except ValueError:
        return None
    return timezone(offset or timedelta(0))
