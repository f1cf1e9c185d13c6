"""What happens when memory runs out, on networks that say so."""

from __future__ import annotations

import contextlib
import weakref

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from pulmo_models.device import Precision, Runner, resolve_device
from pulmo_models.errors import DeviceOutOfMemory, DeviceUnavailable


class Hungry(torch.nn.Module):
    """Doubles its input; has memory for ``room`` items on the meta device and ``cpu_room`` on the CPU."""

    def __init__(self, room: int, cpu_room: int = 1000, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.room = room
        self.cpu_room = cpu_room
        self.error = error
        self.seen: list[tuple[str, int]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((x.device.type, len(x)))
        if len(x) > (self.cpu_room if x.device.type == "cpu" else self.room):
            raise self.error("DefaultCPUAllocator: not enough memory")
        return 2 * x


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_makes_the_batch_smaller_and_it_stays_smaller(error: type[Exception]) -> None:
    network = Hungry(room=0, cpu_room=3, error=error)
    runner = Runner(network, torch.device("cpu"))
    batch = torch.arange(10.0)[:, None]
    assert torch.equal(runner(batch)["output"], 2 * batch)
    assert [size for _, size in network.seen] == [10, 5, 2, 2, 2, 2, 2]
    network.seen.clear()
    assert torch.equal(runner(batch[:5])["output"], 2 * batch[:5])
    assert [size for _, size in network.seen] == [2, 2, 1]
    assert runner.cautions == []


def test_a_device_without_room_for_one_item_hands_over_to_the_cpu() -> None:
    network = Hungry(room=0)
    runner = Runner(network, torch.device("meta"))
    batch = torch.arange(4.0)[:, None]
    assert torch.equal(runner(batch)["output"], 2 * batch)
    assert network.seen == [("meta", 4), ("meta", 2), ("meta", 1), ("cpu", 4)]
    assert runner.device.type == "cpu"
    assert [(caution.code, caution.sentence) for caution in runner.cautions] == [
        ("CPU_FALLBACK", "Hungry ran on the CPU: the memory of the meta device was not enough.")
    ]
    runner(batch)
    assert len(runner.cautions) == 1


@pytest.mark.parametrize(
    ("asked", "native", "used"), [("fp16", False, "fp32"), ("bf16", True, "bf16"), ("fp32", True, "fp32")]
)
def test_the_cpu_that_takes_over_computes_in_what_is_fast_there(
    asked: Precision, native: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    runner = Runner(Hungry(room=0), torch.device("meta"), asked)
    monkeypatch.setattr(runner, "_arithmetic", contextlib.nullcontext)  # there is no autocast on the meta device
    runner(torch.zeros(1, 1))
    assert (runner.device.type, runner.precision) == ("cpu", used)


def test_no_memory_anywhere() -> None:
    with pytest.raises(DeviceOutOfMemory, match="Hungry does not fit into memory"):
        Runner(Hungry(room=0, cpu_room=0), torch.device("meta"))(torch.zeros(2, 1))


def test_what_ran_out_of_memory_has_let_go_of_it_before_the_next_attempt() -> None:
    left: list[weakref.ref[torch.Tensor]] = []
    held: list[bool] = []

    class Deep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held.append(any(ref() is not None for ref in left))
            features = torch.zeros(len(x), 100)
            left.append(weakref.ref(features))
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return x

    assert len(Runner(Deep(), torch.device("cpu"))(torch.zeros(4, 1))["output"]) == 4
    assert held == [False] * 6


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(batch: torch.Tensor) -> torch.Tensor:
        raise TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda network, **_: no_compiler)
    runner = Runner(Hungry(room=0), torch.device("cpu"), compiled=True)
    assert runner.name == "compiled"
    batch = torch.arange(4.0)[:, None]
    assert torch.equal(runner(batch)["output"], 2 * batch)
    assert runner.name == "torch"


def test_the_memory_of_the_cpu_runs_out_in_the_words_of_torch() -> None:
    class Endless(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 50)  # more than any address space

    with pytest.raises(DeviceOutOfMemory, match="Endless does not fit into memory"):
        Runner(Endless(), torch.device("cpu"))(torch.zeros(2, 1))


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_fp32_is_not_tf32(precision: Precision) -> None:
    seen: list[bool] = []

    class Watched(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return x

    before = torch.backends.cudnn.allow_tf32
    Runner(Watched(), torch.device("cpu"), precision)(torch.zeros(2, 1))
    assert seen == [before and precision != "fp32"]
    assert torch.backends.cudnn.allow_tf32 is before


def test_other_errors_of_a_network_are_not_taken_for_memory() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Runner(Broken(), torch.device("cpu"))(torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("precision", "native", "dtype"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_precision_on_the_cpu(
    precision: str, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})

    class Linear(torch.nn.Linear):
        seen: torch.dtype | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            self.seen = out.dtype
            return out

    network = Linear(4, 4)
    out = Runner(network, torch.device("cpu"), precision)(torch.rand(2, 4))["output"]  # type: ignore[arg-type]
    assert network.seen == dtype
    assert out.dtype == torch.float32


def test_resolve_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceUnavailable, match='device = "cuda"'):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="must be"):
        resolve_device("tpu")
