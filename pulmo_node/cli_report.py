"""`pulmo-node report`: a report in the terminal and as HTML, read back from the DICOM objects alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pulmo_node.cli_common import ConfigOption, JsonOption, err, out, print_json, read_config
from pulmo_node.errors import PulmoError

if TYPE_CHECKING:
    from pulmo_node.reading import Block, ReadResult


def report(
    source: Annotated[str, typer.Argument(help="File of a structured report, or Study Instance UID of a study.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write the report to this file as well.")] = None,
    patient: Annotated[
        bool, typer.Option("--patient", help="Show name, ID, birth date and sex of the patient.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a report, the node's or another's, from the DICOM objects alone.

    Segmentation and key images are shown with it where they lie in the same folder; of a study that the node knows,
    its own results are taken.
    """
    from pulmo_node import reading  # noqa: PLC0415

    results = _of_file(Path(source)) if Path(source).is_file() else _of_study(source, config)
    blocks = [block for result in results for block in reading.lay_out(result, patient=patient)]
    if html is not None:
        _write(html, blocks)
    if as_json:
        print_json([_plain(result, patient=patient) for result in results])
    else:
        reading.print_blocks(out, blocks)


def _of_file(path: Path) -> list[ReadResult]:
    from pulmo_node import reading  # noqa: PLC0415
    from pulmo_node.logs import quiet_libraries  # noqa: PLC0415

    quiet_libraries()
    return [reading.read_result(path)]


def _of_study(study_instance_uid: str, config: Path | None) -> list[ReadResult]:
    """The reports of a study among the node's own results, each with what belongs to it."""
    from pulmo_node import reading  # noqa: PLC0415
    from pulmo_node.app import stored_results  # noqa: PLC0415
    from pulmo_node.logs import quiet_libraries  # noqa: PLC0415

    quiet_libraries()
    stored = stored_results(read_config(config), study_instance_uid)
    if not stored:
        err.print(
            f"{study_instance_uid}: neither a file nor a study that the node has results of",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(1)
    paths = [path for _, path in stored]
    return [  # the results of one analysis lie in one folder
        reading.read_result(path, [other for other in paths if other != path and other.parent == path.parent])
        for kind, path in stored
        if kind == "sr"
    ]


def _plain(result: ReadResult, *, patient: bool) -> dict[str, object]:
    values = asdict(result)
    if not patient:
        del values["report"]["patient"]
    return values


def _write(path: Path, blocks: Sequence[Block]) -> None:
    from pulmo_node.reading import page  # noqa: PLC0415

    try:
        path.write_text(page(blocks), encoding="utf-8")
    except OSError as exc:
        raise PulmoError(f"{path}: {exc.strerror}") from exc
