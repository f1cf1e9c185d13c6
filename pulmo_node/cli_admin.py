"""Commands of an operator: priority, erasure, purge, backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulmo_node.cli_common import ConfigOption, err, out, read_config
from pulmo_node.domain.priority import Priority

StudyArgument = Annotated[str, typer.Argument(help="Study Instance UID.")]


def priority(
    study_uid: StudyArgument,
    routine: Annotated[bool, typer.Option("--routine", help="Back to routine.")] = False,
    config: ConfigOption = None,
) -> None:
    """Let a study go before all others (STAT), in analysis and delivery; also series of it that are still to come."""
    from pulmo_node.app import open_store  # noqa: PLC0415

    wanted = Priority.ROUTINE if routine else Priority.STAT
    with open_store(read_config(config)) as store:
        touched = store.set_priority(study_uid, wanted)
    if not touched:
        err.print(f"study {study_uid} is not known")
        raise typer.Exit(1)
    out.print(f"study {study_uid}: {wanted.name}, {touched} series", highlight=False)


def delete(
    study_uid: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Erase a study: images, results, findings and history. An entry in the audit stays; what was sent stays there."""
    from pulmo_node.app import open_audit, open_store  # noqa: PLC0415
    from pulmo_node.retention import erase_study  # noqa: PLC0415

    settings = read_config(config)
    with open_store(settings) as store:
        if not yes and store.study_files(study_uid) is not None:
            typer.confirm(f"Erase study {study_uid} with all its images and results?", abort=True)
        erased = erase_study(settings.storage, store, open_audit(settings), study_uid)
    if erased is None:
        err.print(f"study {study_uid} is not known")
        raise typer.Exit(1)
    counts = f"{erased.series} series, {len(erased.instances)} images, {len(erased.results)} result objects"
    out.print(f"study {study_uid} deleted: {counts}", highlight=False)


def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which studies it would be.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove the images of delivered studies by the limits of \\[retention]; the running node does so by itself."""
    from pulmo_node.app import build_purge, open_store  # noqa: PLC0415

    settings = read_config(config)
    with open_store(settings) as store:
        cleaner = build_purge(settings, store)
        due = cleaner.due()
        if not dry_run:
            cleaner.run()
    for study in due:
        out.print(study, highlight=False)
    out.print(f"{len(due)} studies {'would be' if dry_run else 'were'} purged", highlight=False)


def backup(
    target: Annotated[Path, typer.Argument(help="File to be written; must not exist yet.")],
    config: ConfigOption = None,
) -> None:
    """Copy the SQLite database while the node runs; the copy is checked. Images and results are plain files."""
    from pulmo_node.app import open_audit, open_store  # noqa: PLC0415

    settings = read_config(config)
    with open_store(settings) as store:
        store.backup(target)
    open_audit(settings).record([{"action": "backup", "file": target.absolute()}], durable=True)
    out.print(
        f"{target}: written and checked, {target.stat().st_size / 1024**2:.1f} MiB", highlight=False, markup=False
    )
