"""What every result object is told from outside (`ResultContext`), who made it (`Equipment`), what comes out."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

import highdicom as hd

from pulmo_models import __version__
from pulmo_models.types import AlgorithmStage, PipelineInfo
from pulmo_node.encode import codes, uids
from pulmo_node.errors import Permanent

RESEARCH_USE = "For research use only. Not for diagnosis."

_REPLACEMENTS = str.maketrans({"×": "x", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "…": "...", "’": "'", "°": " deg"})


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """An earlier report, as the Predecessor Documents Sequence (0040,A360) names it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What a site wants written, besides the measurement report and the segmentation; the keys of ``[results]``."""

    negative_report: Literal["viewer_safe", "air"] = "viewer_safe"  # root of a report without measurements
    segmentation: Literal["binary", "labelmap"] = "binary"
    empty_frames: bool = False  # SEG frames also for images that no mask touches
    lung_segments: bool = False  # the lungs as segments of the SEG, behind the nodules
    image_library: bool = False  # in the SR; makes it megabytes where the series is long
    key_images: bool = True  # secondary captures: a summary page and one of each nodule
    presentation_states: bool = False  # GSPS on the key images of the source
    pdf_report: bool = False  # encapsulated PDF
    heat_maps: bool = True  # of radiographs: colour secondary captures
    parametric_maps: bool = False  # of radiographs: the heat maps as numbers


@dataclass(frozen=True, kw_only=True)
class ResultContext:
    """What identifies a set of results besides the findings themselves.

    The same findings and context always give the same bytes: dates and times come from `content_datetime`, which
    should therefore be a durable fact of the job and not the time of the call.
    """

    series_instance_uid: str  # of the analysed series
    revision: int  # of the analysed series, + 1 with each late instance
    pipeline: str  # registry label
    settings_sha256: str  # of the pipeline's table of settings
    content_datetime: datetime  # aware
    options: ResultOptions = ResultOptions()
    predecessors: tuple[Predecessor, ...] = ()  # reports on the same series that this one replaces
    manufacturer: str = "Pulmo Node"
    code_version: str = __version__

    def __post_init__(self) -> None:
        if self.content_datetime.tzinfo is None:
            raise ValueError("content_datetime must be aware")

    def uid(self, kind: str, weights_sha256: str) -> str:
        """The UID of one thing made under this context; see `uids.result_uid`."""
        return uids.result_uid(
            series_instance_uid=self.series_instance_uid,
            revision=self.revision,
            pipeline=self.pipeline,
            code_version=self.code_version,
            weights_sha256=weights_sha256,
            settings_sha256=self._settings(),
            kind=kind,
        )

    def _settings(self) -> str:
        """Digest of everything that a site or the history of the series decides about the bytes."""
        decided = (self.settings_sha256, asdict(self.options), [asdict(earlier) for earlier in self.predecessors])
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """An algorithm as SR and SEG name it, with the same values at each place (IHE AI Results, table 6.5.3.1-1).

    Manufacturer = 121014 = (0024,0202); model name = 121015 = 111001 = (0066,0036); software version = 111003 =
    (0066,0031); device UID = 121012 = (0018,1002). The program as a whole is one, each of its networks another.
    """

    manufacturer: str
    model_name: str
    software_version: str
    serial_number: str
    device_uid: str
    description: str = PipelineInfo.description
    subject: str = PipelineInfo.subject  # of its results, in the descriptions of their series
    series_base: int = PipelineInfo.series_base
    parameters: tuple[tuple[str, str], ...] = ()  # weights, thresholds: what TID 4019 and (0066,0032) list
    stages: tuple[Equipment, ...] = ()  # its networks, in the order in which they work

    @classmethod
    def of(cls, info: PipelineInfo | None, context: ResultContext) -> Equipment:
        """The equipment of a pipeline; without `info` (it was never built) that of the node itself."""
        name, version, weights = context.pipeline, context.code_version, ""
        subject, description = context.pipeline.partition("-")[2], cls.description
        if info is not None:
            name, version, weights = ascii_text(info.name), ascii_text(info.version), info.weights_sha256
            subject, description = ascii_text(info.subject), ascii_text(info.description)
        return cls(
            manufacturer=context.manufacturer,
            model_name=name,
            software_version=version,
            serial_number=weights[:16] or version,  # type 1 in SEG; a program has no other serial number
            device_uid=uids.device_uid(pipeline=context.pipeline, name=name, version=version, weights_sha256=weights),
            description=description,
            subject=subject,
            series_base=PipelineInfo.series_base if info is None else info.series_base,
            parameters=() if info is None else algorithm_parameters(info),
            stages=() if info is None else tuple(_stage(info, number, context) for number in range(len(info.stages))),
        )

    def series_description(self, kind: str) -> str:
        """Series Description (0008,103E) of its results of one kind: "Pulmo nodules SR"."""
        return " ".join(part for part in ("Pulmo", self.subject, kind) if part)[:64]

    def contributing_items(self, context: ResultContext) -> list[hd.ContributingEquipment]:
        """The Contributing Equipment Sequence (0018,A001): an item for the program, and one for each network."""
        return [equipment.contributing_item(context) for equipment in (self, *self.stages)]

    def contributing_item(self, context: ResultContext) -> hd.ContributingEquipment:
        """One item of the Contributing Equipment Sequence (0018,A001)."""
        item = hd.ContributingEquipment(
            self.manufacturer,
            codes.PROCESSING_EQUIPMENT,
            manufacturer_model_name=self.model_name,
            software_versions=self.software_version,
            device_serial_number=self.serial_number,
            contribution_datetime=f"{context.content_datetime:%Y%m%d%H%M%S%z}",
            contribution_description=self.description,
        )
        item.DeviceUID = self.device_uid
        return item


@dataclass(frozen=True, kw_only=True)
class EncodedObject:
    """One result object, ready for the outbox."""

    kind: str  # "sr", "seg", "key-image", "gsps", "pdf", "heat-map" or "parametric-map"
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes  # a whole Part 10 file


def algorithm_parameters(info: PipelineInfo) -> tuple[tuple[str, str], ...]:
    """Weights and thresholds of a pipeline as (name, value); no value holds ``,`` or ``=``, which separate them."""
    found = [("weights", info.weights_name), ("weights_sha256", info.weights_sha256)]
    for number, stage in enumerate(info.stages, start=1):
        found.append((f"stage{number}", f"{stage.name} {stage.version}"))
        found.extend((f"stage{number}_{name}", value) for name, value in _stage_parameters(stage))
    return _safe_parameters(found)


def _stage_parameters(stage: AlgorithmStage) -> list[tuple[str, str]]:
    return [("weights_sha256", stage.weights_sha256), *((name, str(value)) for name, value in stage.parameters.items())]


def _safe_parameters(found: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    safe = str.maketrans({",": ";", "=": ":"})
    return tuple((ascii_text(name).translate(safe), ascii_text(value).translate(safe)) for name, value in found)


def _stage(info: PipelineInfo, index: int, context: ResultContext) -> Equipment:
    """One network of a pipeline as an algorithm of its own."""
    stage = info.stages[index]
    name, version, weights = ascii_text(stage.name), ascii_text(stage.version), stage.weights_sha256
    return Equipment(
        manufacturer=context.manufacturer,
        model_name=name,
        software_version=version,
        serial_number=weights[:16] or version,
        device_uid=uids.device_uid(pipeline=context.pipeline, name=name, version=version, weights_sha256=weights),
        description=f"Stage {index + 1} of {ascii_text(info.name)}",
        parameters=_safe_parameters(_stage_parameters(stage)),
    )


def ascii_text(text: str) -> str:
    """The text in ASCII: a result keeps the character set of its source, which may have no other characters."""
    plain = unicodedata.normalize("NFKD", text.translate(_REPLACEMENTS))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return plain.encode("ascii", "replace").decode("ascii")


@contextmanager
def library_errors(what: str, series_instance_uid: str) -> Iterator[None]:
    """Translate what highdicom and pydicom raise on data they cannot encode; they have no base class of their own.

    Only the type of the error is put into the sentence: a library's message may quote a value of the patient's.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError, OverflowError) as exc:
        raise Permanent(
            f"{what} of series {series_instance_uid} could not be encoded ({type(exc).__name__} from the library)"
        ) from exc
