"""The command line, `pulmo-node`. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

Heavy imports (networks, DICOM encoding) happen inside the commands that need them, so `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape

from pulmo_node import cli_admin, cli_report, cli_users, cli_weights
from pulmo_node import console as tables
from pulmo_node.cli_common import ConfigOption, JsonOption, err, out, print_json, progress_bar, read_config
from pulmo_node.config import Config, LogSection, default_path, load
from pulmo_node.domain.studies import STUDY_STATES
from pulmo_node.errors import ConfigError, PulmoError
from pulmo_node.ports import AdminStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from pulmo_node.inspection import Found

app = typer.Typer(
    help="A DICOM node that finds and characterises lung nodules in chest CT. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(cli_weights.app, name="weights")
app.add_typer(config_app, name="config")
app.add_typer(cli_users.app, name="user")
app.command()(cli_report.report)
for _command in (cli_admin.priority, cli_admin.delete, cli_admin.purge, cli_admin.backup):
    app.command()(_command)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except ConfigError as exc:
        err.print(f"[red]{escape(str(exc))}[/]", highlight=False)
        sys.exit(2)
    except PulmoError as exc:
        err.print(f"[red]failed:[/] {escape(str(exc))}", highlight=False)
        sys.exit(1)
    except OSError as exc:  # of a file or folder that no command foresaw, or of what standard output is
        where = exc.filename if exc.filename is not None else "the output"
        err.print(f"[red]failed:[/] {escape(f'{where}: {exc.strerror or exc}')}", highlight=False)
        sys.exit(1)


@contextmanager
def _admin(path: Path | None) -> Iterator[AdminStore]:
    from pulmo_node.app import open_store  # noqa: PLC0415

    with open_store(read_config(path)) as store:
        yield store


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Run the node until it is told to stop (SIGTERM, Ctrl-C); SIGHUP reads the configuration again."""
    from pulmo_node import app as composition  # noqa: PLC0415

    settings = read_config(config)
    composition.configure_logging(settings)
    composition.serve(settings, lambda: read_config(config))


@app.command()
def analyze(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files; other files in it are named and passed over.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the results; made where it does not exist.")],
    pipeline: Annotated[list[str] | None, typer.Option(help="Only this pipeline (may be repeated).")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Analyse a folder without PACS and database; writes SR, SEG, findings.json and pictures."""
    from pulmo_node.app import build_analyser, configure_logging  # noqa: PLC0415
    from pulmo_node.encode import ResultOptions  # noqa: PLC0415
    from pulmo_node.offline import analyse_folder  # noqa: PLC0415

    settings = read_config(config)
    configure_logging(settings)
    labels = _pipelines(settings, pipeline)
    options = ResultOptions(**settings.results.options)
    with progress_bar() as (progress, task):

        def report(step: str, share: float) -> None:
            progress.update(task, description=step, completed=share)

        run = analyse_folder(folder, out_folder, build_analyser(settings), labels, report, options=options)
    if as_json:
        print_json(run)
    else:
        for aside in run.set_aside:
            out.print(f"[dim]passed over:[/] {escape(f'{aside.file}: {aside.reason}')}", highlight=False)
        for result in run.results:
            out.print(f"series {result.series_instance_uid}, {result.pipeline}:", highlight=False)
            if result.findings is None:
                style = "yellow" if result.rejected else "red"
                word = "rejected" if result.rejected else "failed"
                out.print(f"  [{style}]{word}:[/] {escape(result.problem or '')}")
            else:
                tables.print_nodules(out, result.findings)
                out.print(f"  written to {result.folder}", highlight=False, markup=False)
    if not any(result.findings is not None for result in run.results):
        err.print("no series was analysed")
        raise typer.Exit(1)
    if any(result.problem is not None and not result.rejected for result in run.results):
        raise typer.Exit(1)


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="Folder of DICOM files, or Series Instance UID of a received series.")],
    png: Annotated[
        Path | None, typer.Option(help="Write the three middle planes of what would be analysed to this file.")
    ] = None,
    headers: Annotated[
        bool, typer.Option("--headers", help="Read headers alone: faster, but blind to pixels that cannot be decoded.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the node would make of a series: its volumes, what is set aside, and why. Analyses nothing."""
    from pulmo_node import inspection  # noqa: PLC0415

    found = inspection.in_folder(Path(source)) if Path(source).is_dir() else _stored_series(source, config)
    if not found.series:
        what = "neither a folder that holds DICOM files nor a series that the node has received"
        err.print(f"{source}: {what}", markup=False)
        raise typer.Exit(1)
    if png and headers:
        raise typer.BadParameter("the picture takes the pixels, which --headers leaves out", param_hint="--png")
    inspected, pictures = [], []
    for one in found.series:  # one volume in memory at a time
        result, volume = inspection.inspect_series(one, headers_only=headers)
        inspected.append(result)
        if png and volume is not None:
            pictures.append(inspection.planes_picture(volume))
    if as_json:
        print_json({"series": inspected, "set_aside": found.set_aside})
    else:
        for item in found.set_aside:
            out.print(f"[dim]passed over:[/] {escape(f'{item.file}: {item.reason}')}", highlight=False)
        for result in inspected:
            tables.print_inspection(out, result)
    if png is not None:
        if not pictures:
            err.print("there is no volume to draw")
            raise typer.Exit(1)
        _save(inspection.below_one_another(pictures), png)


def _stored_series(series_instance_uid: str, config: Path | None) -> Found:
    from pulmo_node import inspection  # noqa: PLC0415
    from pulmo_node.app import stored_files  # noqa: PLC0415

    return inspection.of_files(*stored_files(read_config(config), series_instance_uid))


def _save(picture: Image, path: Path) -> None:
    try:
        picture.save(path, format="PNG")
    except OSError as exc:
        raise PulmoError(f"{path}: {exc.strerror}") from exc


def _pipelines(settings: Config, wanted: list[str] | None) -> list[str]:
    unknown = [label for label in wanted or () if label not in settings.pipelines]
    if unknown:
        raise ConfigError([f"pipelines.{label}: not configured" for label in unknown])
    return wanted or list(settings.pipelines)


@app.command()
def studies(
    state: Annotated[str | None, typer.Option(help=f"Only studies in this state: {', '.join(STUDY_STATES)}.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the studies that the node knows, newest first."""
    if state is not None and state.upper() not in STUDY_STATES:
        raise typer.BadParameter(f"{state}: must be one of {', '.join(STUDY_STATES)}", param_hint="--state")
    with _admin(config) as store:
        found = store.studies(state=state.upper() if state else None)
    if as_json:
        print_json(found)
    else:
        tables.print_studies(out, found)


@app.command()
def show(
    study_uid: Annotated[str, typer.Argument(help="Study Instance UID.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study: its series, jobs, deliveries, events and the reasons for each."""
    with _admin(config) as store:
        found = store.study(study_uid)
    if found is None:
        err.print(f"no study {study_uid}")
        raise typer.Exit(1)
    if as_json:
        print_json(found)
        return
    tables.print_study(out, found)
    for job in found.jobs:
        if job.findings:
            tables.print_nodules(out, json.loads(job.findings))


@app.command()
def requeue(
    study_uids: Annotated[list[str] | None, typer.Argument(help="Study Instance UIDs.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only failed jobs; of every study where none is named.")
    ] = False,
    series: Annotated[str | None, typer.Option(help="Only this Series Instance UID.")] = None,
    redeliver: Annotated[bool, typer.Option("--redeliver", help="Send the results again; analyse nothing.")] = False,
    config: ConfigOption = None,
) -> None:
    """Analyse studies again, or send their results again."""
    if not study_uids and not series and not failed:
        raise typer.BadParameter("name a study, --series or --failed")
    with _admin(config) as store:
        if not redeliver:
            _tell_purged(store, study_uids or (), series)
        count = sum(
            store.requeue(study_instance_uid=uid, series_instance_uid=series, only_failed=failed, redeliver=redeliver)
            for uid in (study_uids or (None,))
        )
    out.print(f"{count} requeued")
    if count == 0:
        raise typer.Exit(1)


def _tell_purged(store: AdminStore, study_uids: Sequence[str], series: str | None) -> None:
    """Say what to send again, and exit, where images of a study, or of that series, were purged."""
    studies = study_uids or ((None,) if series else ())
    purged = [one for uid in studies for one in store.purged_series(uid, series)]
    for one in purged:
        what = f"{one.images} images of series {one.series_instance_uid}"
        sentence = f"{what} were purged: send them again from {one.calling_ae_title}, then requeue"
        err.print(sentence, highlight=False, markup=False)
    if purged:
        raise typer.Exit(1)


@app.command()
def cancel(study_uid: Annotated[str, typer.Argument(help="Study Instance UID.")], config: ConfigOption = None) -> None:
    """Cancel the open jobs of a study; what was sent stays sent."""
    with _admin(config) as store:
        count = store.cancel(study_uid)
    out.print(f"{count} jobs cancelled")
    if count == 0:
        raise typer.Exit(1)


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files.")],
    to: Annotated[str, typer.Option(help="Name of a configured peer.")],
    config: ConfigOption = None,
) -> None:
    """Send the DICOM files of a folder to a peer by C-STORE, as they are."""
    from pulmo_node.app import build_sender  # noqa: PLC0415
    from pulmo_node.assemble.folder import files_below  # noqa: PLC0415

    settings = read_config(config)
    files = files_below(folder, _refuse)
    failures = 0
    sent = 0
    peer = _peer(settings, to)
    if peer.stow_url:
        raise ConfigError([f"peers.{to}: a DICOMweb server; only results are sent there"])
    if peer.deidentify is not None:
        raise ConfigError([f"peers.{to}.deidentify: files would be sent as they are; only results are de-identified"])
    for result in build_sender(settings).send_files(peer, files):
        if result.error is None:
            sent += 1
        else:
            failures += 1
            err.print(f"{result.path}: {result.error}", highlight=False, markup=False)
    out.print(f"{sent} sent, {failures} not sent")
    if failures or not sent:
        raise typer.Exit(1)


@app.command()
def echo(peer: Annotated[str, typer.Argument(help="Name of a configured peer.")], config: ConfigOption = None) -> None:
    """Ask a peer by C-ECHO whether it answers, a DICOMweb server by HTTP."""
    from pulmo_node.app import build_result_sender  # noqa: PLC0415

    settings = read_config(config)
    seconds = build_result_sender(settings).echo(_peer(settings, peer))
    out.print(f"{peer} answered in {seconds * 1000:.0f} ms")


def _refuse(error: OSError) -> NoReturn:
    """A folder that cannot be looked into is an error, not an empty one."""
    raise PulmoError(f"{error.filename}: {error.strerror}") from error


def _peer(settings: Config, name: str) -> Any:
    if name not in settings.peers:
        raise ConfigError([f"peers.{name}: not configured (there are: {', '.join(settings.peers) or 'none'})"])
    return settings.peer(name)


@app.command()
def pipelines(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the pipelines that there are, which of them are configured, and where weights for the others come from."""
    from pulmo_models import registry  # noqa: PLC0415

    settings = read_config(config)
    headings = ("label", "modality", "configured", "summary", "weights")
    rows = [
        (
            entry.label,
            entry.modality,
            "yes" if entry.label in settings.pipelines else "no",
            entry.summary,
            entry.weights_hint,
        )
        for entry in registry.entries()
    ]
    if as_json:
        print_json([dict(zip(headings, row, strict=True)) for row in rows])
        return
    tables.print_rows(out, headings[:-1], [row[:-1] for row in rows])
    for label, _, configured, _, hint in rows:
        if hint and configured == "no":
            out.print(f"{label} is off; to get weights: {hint}", highlight=False, markup=False)


@app.command()
def healthchecks(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check database, disk, decoders, device, weights and peers; exit code 1 if one of them fails."""
    from pulmo_node.health import run_checks  # noqa: PLC0415

    checks = run_checks(read_config(config))
    if as_json:
        print_json(checks)
    else:
        words = ((escape(c.name), "[green]ok[/]" if c.ok else "[bold red]FAILED[/]", escape(c.detail)) for c in checks)
        tables.print_rows(out, ("check", "", "detail"), words)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def demo(
    ct: Annotated[
        Path | None, typer.Option(help="Folder of DICOM files (default: a phantom with known nodules).")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the pictures and the page.")] = Path("demo-out"),
    viewer: Annotated[
        Path | None,
        typer.Option(help="Folder of OHIF's distribution: keep the study open in it (make demo VIEWER=1 fetches it)."),
    ] = None,
) -> None:
    """Start a PACS and a node on this machine, send a chest CT, wait for the results and show them."""
    from pulmo_node.app import configure_logging  # noqa: PLC0415
    from pulmo_node.demo import run_demo  # noqa: PLC0415

    configure_logging(Config(log=LogSection(level="WARNING")))
    if not run_demo(ct, out_folder, out, ohif=viewer):
        raise typer.Exit(1)


@config_app.command("show")
def config_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print the configuration in force: file, environment and defaults together."""
    values = read_config(config).as_dict()
    if as_json:
        print_json(values)
        return
    for section, keys in values.items():
        out.print(f"[bold]{section}[/]", highlight=False)
        for key, value in keys.items() if isinstance(keys, dict) else enumerate(keys):
            out.print(f"  {key} = {json.dumps(value, default=str)}", highlight=False, markup=False)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration; every error is named at once."""
    path = config or default_path()
    load(path)
    out.print(f"{path or 'defaults'}: ok", highlight=False, markup=False)
