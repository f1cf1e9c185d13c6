"""`pulmo-train data inserted`: real nodules of some patients in the lungs of others, as a patch store.

A sample is of one split with everything in it: host and nodules. Samples are numbered, and a number and the seed say
what a sample is, so a store does not depend on how many processes made it.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from pulmo_models import __version__
from pulmo_models.errors import ModelError, WeightsMissing
from pulmo_models.training.material.drawn import drawn_nodules
from pulmo_models.training.material.hosts import SPLIT_HOSTS, Host, load_hosts, load_phantoms
from pulmo_models.training.material.mining import Places, mine
from pulmo_models.training.material.nodules import RealNodule, load_nodules
from pulmo_models.training.material.samples import Material, Sampler, Shape, Shares
from pulmo_models.training.splits import Split, split_of
from pulmo_models.training.store import Patch, Stage, StoreWriter, Window

PHANTOM_SEEDS = range(100, 106)  # the demo's is another one
_CHUNK = 8  # samples that a process is given at a time

Progress = Callable[[str, float], None]


class NothingToInsert(ModelError):
    """A split has no host, or no nodules. The message says which."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to make."""

    data: Path
    out: Path
    work: Path
    seed: int
    windows: Mapping[Split, int]
    patches: Mapping[Split, int]
    window: Shape = (64, 128, 128)
    patch: Shape = (20, 72, 72)
    train_hosts: Sequence[str] = SPLIT_HOSTS["train"]
    leave_out: Sequence[str] = ()
    weights: str | None = None  # a set, or a checkpoint of stage 1: its false findings become hard negatives
    processes: int = 1
    shares: Shares = field(default_factory=Shares)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that samples are asked of."""
        return tuple(split for split in SPLIT_HOSTS if self.windows.get(split, 0) + self.patches.get(split, 0))

    def hosts(self, split: Split) -> list[str]:
        """The series of a split. One that is trained on serves no other, and one that is left out serves none.

        Raises:
            NothingToInsert: none is left.
        """
        names = self.train_hosts if split == "train" else [n for n in SPLIT_HOSTS[split] if n not in self.train_hosts]
        left = [name for name in names if name not in self.leave_out]
        if not left:
            raise NothingToInsert(f"no series is left as a host of the {split} split")
        return left


def write_store(request: Request, progress: Progress = lambda text, share: None) -> Path:
    """Make the store; the path of its file.

    `progress` is told what is done and how much of it, 0..1.

    Raises:
        NothingToInsert: a split has no host or no nodules.
        FileNotFoundError: the data folder lacks something.
        LidcDatabaseInvalid, WeightsMissing, WeightsCorrupt: the readers' database, or the set of weights.
    """
    dropped: Counter[str] = Counter()
    materials = [load_material(request, split, dropped, progress) for split in request.splits]
    provenance = {
        "command": "data inserted",
        "version": __version__,
        "seed": request.seed,
        "hosts": {material.split: [host.name for host in material.hosts] for material in materials},
        "phantoms": {material.split: [host.name for host in material.phantoms] for material in materials},
        "nodules": {material.split: sum(not n.drawn for n in material.nodules) for material in materials},
        "drawn nodules": {material.split: sum(n.drawn for n in material.nodules) for material in materials},
        "patients": {material.split: len({n.patient for n in material.nodules}) for material in materials},
        "hard negatives": {name: len(found) for material in materials for name, found in material.hard.items()},
        "detector": request.weights,
        "nodules are of": "LIDC-IDRI (CC BY 3.0)",
    }
    jobs = list(_jobs(request))
    shapes = {"window": request.window if any(request.windows.values()) else None}
    shapes["patch"] = request.patch if any(request.patches.values()) else None
    with StoreWriter(request.out, **shapes, provenance=provenance) as writer:
        for reason, count in dropped.items():
            writer.drop(reason, count)
        for number, (sample, given_up) in enumerate(_made(request, materials, jobs)):
            if isinstance(sample, Window):
                writer.add_window(sample)
            else:
                writer.add_patch(sample)
            for reason, count in given_up.items():
                writer.drop(f"tried again: {reason}", count)
            progress("samples", (number + 1) / len(jobs))
    return request.out


def load_material(request: Request, split: Split, dropped: Counter[str], progress: Progress) -> Material:
    """Hosts and nodules of a split; what is left out is counted in `dropped`."""
    progress(f"{split}: series and nodules", 0.0)
    hosts = load_hosts(request.data, request.hosts(split), request.work)
    training = split == "train"
    phantoms = load_phantoms(PHANTOM_SEEDS, request.work) if training and request.shares.phantoms else []

    def wanted(patient: int) -> bool:
        return split_of(patient) == split

    nodules: list[RealNodule] = load_nodules(request.data / "lidc_patches", wanted, dropped=dropped)
    if not nodules:
        raise NothingToInsert(f"{request.data / 'lidc_patches'}: no nodule of the {split} split is left")
    if training and request.shares.drawn:
        progress(f"{split}: nodules of rare kinds", 0.0)
        nodules += drawn_nodules(wanted, request.seed)
    hard = _hard_negatives(request, hosts, progress) if request.weights and request.patches.get(split, 0) else {}
    return Material(split=split, hosts=hosts, nodules=nodules, phantoms=phantoms, hard=hard)


def _hard_negatives(request: Request, hosts: Sequence[Host], progress: Progress) -> Mapping[str, Places]:
    from pulmo_models.training.fitting.networks import load_networks  # noqa: PLC0415 - torch is for this alone

    networks = load_networks(str(request.weights))
    if networks.stage1 is None:
        raise WeightsMissing(f"{request.weights}: holds no detector, so it finds no hard negatives")
    name = f"{networks.name}-{networks.digests['stage1'][:12]}"
    return mine(networks.stage1, name, hosts, request.work, lambda host: progress(f"detector on {host.name}", 0.0))


_Job = tuple[Split, Stage, int]


def _jobs(request: Request) -> Iterator[_Job]:
    for split in request.splits:
        for number in range(request.patches.get(split, 0)):
            yield split, "stage2", number
        for number in range(request.windows.get(split, 0)):
            yield split, "stage1", number


def _made(
    request: Request, materials: Sequence[Material], jobs: Sequence[_Job]
) -> Iterator[tuple[Window | Patch, Counter[str]]]:
    """Samples in the order of the jobs, each with what was given up on the way."""
    if request.processes <= 1:
        samplers = _samplers(request, materials)
        yield from (_sample(samplers, request, job) for job in jobs)
        return
    with tempfile.TemporaryDirectory(prefix="pulmo-train-") as folder:
        path = Path(folder) / "material.pickle"
        with path.open("wb") as file:
            pickle.dump((request, materials), file, protocol=pickle.HIGHEST_PROTOCOL)
        # Spawned, not forked: the parent may hold threads of torch.
        with ProcessPoolExecutor(
            request.processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(path,)
        ) as pool:
            for start in range(0, len(jobs), 64 * _CHUNK):  # in parts, so that what is made does not pile up
                part = jobs[start : start + 64 * _CHUNK]
                yield from pool.map(_in_process, part, chunksize=_CHUNK)


def _samplers(request: Request, materials: Sequence[Material]) -> dict[Split, Sampler]:
    make = partial(Sampler, seed=request.seed, shares=request.shares)
    return {material.split: make(material) for material in materials}


def _sample(samplers: Mapping[Split, Sampler], request: Request, job: _Job) -> tuple[Window | Patch, Counter[str]]:
    split, stage, number = job
    sampler = samplers[split]
    sampler.dropped.clear()
    sample = sampler.window(number, request.window) if stage == "stage1" else sampler.patch(number, request.patch)
    return sample, Counter(sampler.dropped)


_held: dict[str, tuple[Request, dict[Split, Sampler]]] = {}  # of a process of the pool


def _begin(path: Path) -> None:
    with path.open("rb") as file:
        request, materials = pickle.load(file)  # noqa: S301 - written by the parent, in a folder of its own
    _held["all"] = (request, _samplers(request, materials))


def _in_process(job: _Job) -> tuple[Window | Patch, Counter[str]]:
    request, samplers = _held["all"]
    return _sample(samplers, request, job)
