from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import assembly, report


def test_ratio_says_how_many_times_better_whatever_the_unit_means() -> None:
    fast, slow = report.row("ours", [1.0, 2.0, 4.0], "s"), report.row("theirs", [10.0], "s")
    many, few = report.row("ours", [300.0], "per second"), report.row("theirs", [200.0], "per second")
    assert report.compared(fast, slow).ratio == pytest.approx(5.0)
    assert report.compared(many, few, higher_is_better=True).ratio == pytest.approx(1.5)
    assert report.compared(fast, slow).of == "theirs"


def test_what_cannot_be_compared_is_not() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        report.compared(report.row("ours", [1.0], "s"), report.row("theirs", [1.0], "MiB"))


def test_the_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = report.in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, repeats=2)
    assert order == ["a", "b", "a", "b"]
    assert samples == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_a_part_writes_its_table_with_machine_and_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = report.row("theirs", [3.0, 5.0, 4.0], "s")
    table = report.Table(
        name="some-part",
        title="Some part",
        protocol="As told.",
        rows=(report.compared(report.row("ours", [2.0], "s"), theirs), theirs),
        notes=("The same candidates.",),
        plots=("some.png",),
    )
    report.main(lambda _: table, None, ["--out", str(tmp_path)])
    stored = json.loads((tmp_path / "some-part.json").read_text())
    assert stored["rows"][0]["ratio"] == 2.0
    assert (stored["rows"][1]["median"], stored["rows"][1]["minimum"], stored["rows"][1]["maximum"]) == (4.0, 3.0, 5.0)
    assert stored["machine"]["processors"] >= 1
    assert stored["machine"]["packages"]["numpy"]
    text = (tmp_path / "some-part.md").read_text()
    assert "| ours | 2.00 | 2.00 | 2.00 | s | 2.00× | theirs |" in text
    assert "- The same candidates." in text
    assert "![Some part](some.png)" in text
    assert text in capsys.readouterr().out


def test_a_part_that_cannot_be_measured_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: report.Options) -> report.Table:
        raise report.Unavailable("Orthanc is not installed")

    with pytest.raises(SystemExit) as ended:
        report.main(run, None, ["--out", str(tmp_path)])
    assert ended.value.code == report.EXIT_UNAVAILABLE
    assert "Orthanc is not installed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_assembly_says_what_its_series_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of data without the real series leaves noise."""
    monkeypatch.setattr(assembly, "write_series", lambda *_: None)
    monkeypatch.setattr(assembly, "_of_kind", lambda *_: [])
    assert "noise over a cylinder" in assembly.run(report.Options(data=tmp_path, quick=True)).protocol


def test_a_device_that_works_on_after_the_call_is_waited_for() -> None:
    torch = pytest.importorskip("torch")
    engine = pytest.importorskip("benchmarks.engine")
    waited = []

    class UnderWay(torch.Tensor):
        def item(self) -> float:
            waited.append(tuple(self.shape))
            return super().item()

    class Gpu:
        def run(self, batch: object) -> UnderWay:
            return torch.full((2, 1, 4, 4, 4), 3.0).as_subclass(UnderWay)

    assert engine.computed(Gpu(), torch.zeros(2, 1, 4, 4, 4)) == 3.0
    assert waited == [()]
