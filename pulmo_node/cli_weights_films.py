"""`pulmo-node weights import-findings` and `import-lung-risk`: checkpoints of radiograph networks become sets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pulmo_models.errors import ModelError
from pulmo_node.cli_common import ConfigOption, read_config
from pulmo_node.errors import Permanent

_IMPORTS = "pulmo_models.cxr.imports"

NameOption = Annotated[str, typer.Option("--name", help="Name of the new set.")]


def register(app: typer.Typer, announce: Callable[[Path], None]) -> None:
    """Add the commands; `announce` tells of a new set by its manifest."""

    @app.command("import-findings")
    def weights_import_findings(
        checkpoints: Annotated[
            list[Path], typer.Argument(help="best_model.pth of each network; several: an ensemble.")
        ],
        name: NameOption = "cxr-findings",
        threshold: Annotated[
            list[float] | None, typer.Option(help="From which a finding counts as present; five times, one a finding.")
        ] = None,
        config: ConfigOption = None,
    ) -> None:
        """Check classifiers of chest radiographs, published or of `pulmo-train cxr`, and convert them into a set."""
        folder = read_config(config).weights_folder
        announce(_imported("import_findings", checkpoints, folder, name=name, thresholds=tuple(threshold or ())))

    @app.command("import-lung-risk")
    def weights_import_lung_risk(
        source: Annotated[Path, typer.Argument(help="Folder of the published files, Lung_Age_081221_0.pth and so on.")],
        name: NameOption = "cxr-lung-risk",
        config: ConfigOption = None,
    ) -> None:
        """Check the networks of CXR-Lung-Risk (Zenodo 7941660) and convert them into a set."""
        announce(_imported("import_lung_risk", source, read_config(config).weights_folder, name=name))


def _imported(function: str, *arguments: object, **options: object) -> Path:
    """The manifest of the new set. Torch is imported only now. Raises `Permanent`."""
    imports = importlib.import_module(_IMPORTS)
    try:
        manifest: Path = getattr(imports, function)(*arguments, **options)
    except ModelError as exc:
        raise Permanent(str(exc)) from exc
    return manifest
