"""A published checkpoint of one network, fetched or given as a file, becomes a set of weights in a weights folder.

As with :mod:`pulmo_models.imports`, whatever is wrong is found before the folder is touched, and a set appears whole or
not at all. The published digest shows whether a file is the published one.

Errors: :class:`WeightsMissing`, :class:`WeightsCorrupt`, :class:`WeightsUnknown`, :class:`WeightsUnavailable`.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from pulmo_models.checkpoints import load_state, save_network
from pulmo_models.downloads import ByteCallback, digest_of, fetch_file
from pulmo_models.errors import WeightsMissing, WeightsUnknown
from pulmo_models.imports import DOWNLOADS, check_name, writable
from pulmo_models.nets.retinanet3d import RetinaNet3D
from pulmo_models.network_sets import NetworkSet, NetworkSpec, read_networks, verify_any, write_networks
from pulmo_models.published import PublishedNetwork

ARCHITECTURES: dict[str, type[nn.Module]] = {"RetinaNet3D": RetinaNet3D}


def fetch_network(
    model: PublishedNetwork,
    folder: Path,
    *,
    name: str | None = None,
    url: str | None = None,
    progress: ByteCallback = lambda file, done, total: None,
) -> Path:
    """Fetch a published network and import it; returns the path of the manifest.

    ``url`` is another place of the same file. A set of that name that was made of it already is verified, and nothing
    is transferred; an interrupted transfer goes on where it ended.

    Raises:
        WeightsUnavailable: no connection, another file than the published one, or the name is taken.
        WeightsCorrupt: what came is no such checkpoint.
    """
    name = name or model.name
    manifest = folder / name / f"{name}.toml"
    if manifest.is_file():
        found = read_networks(manifest)
        if [spec.source_digest for spec in found.networks.values()] == [model.digest]:
            verify_any(found)
            return manifest
    check_name(folder, name)
    downloads = folder / DOWNLOADS
    file = fetch_file(url or model.url, downloads / model.file, model.digest, progress=progress)
    try:
        return import_network(model, file, folder, name=name, origin=url or model.url)
    finally:
        shutil.rmtree(downloads)


def import_network(
    model: PublishedNetwork,
    file: Path,
    folder: Path,
    *,
    name: str | None = None,
    origin: str = "",
    any_weights: bool = False,
) -> Path:
    """Import a checkpoint from a file; returns the path of the manifest.

    It must be the published one, unless ``any_weights`` says that other weights of the same architecture are meant;
    then licence and attribution are left to whoever made them.

    Raises:
        WeightsMissing: no such file.
        WeightsCorrupt: no checkpoint of that network.
        WeightsUnknown: not the published file.
        WeightsUnavailable: the name is taken or the folder cannot be written.
    """
    name = name or model.name
    check_name(folder, name)
    if not file.is_file():
        raise WeightsMissing(f"checkpoint {file} does not exist")
    digest = digest_of(file, model.digest.partition(":")[0])
    network = ARCHITECTURES[model.architecture]()
    state = load_state(file, network, containers=(model.container,))
    if digest != model.digest and not any_weights:
        raise WeightsUnknown(f"{file.name} is not the published file: its digest is {digest}, not {model.digest}")
    published = digest == model.digest
    with writable(folder), tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as part:
        place = Path(part) / name
        place.mkdir()
        spec = save_network(place / f"{name}-{model.network}.safetensors", state, network)
        spec = replace(spec, source_file=file.name, source_digest=digest)
        weights = NetworkSet(
            pipeline=model.pipeline,
            name=name,
            version="published" if published else "imported",
            licence=model.licence if published else "not stated",
            origin=origin or f"imported from the file {file.name}",
            attribution=model.attribution if published else "not stated",
            networks={model.network: NetworkSpec(**vars(spec), architecture=model.architecture)},
        )
        write_networks(place / f"{name}.toml", weights)
        place.rename(folder / name)
    return folder / name / f"{name}.toml"
