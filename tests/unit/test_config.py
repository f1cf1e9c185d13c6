"""The configuration: defaults, file, environment, and every error at once."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from pulmo_models import registry
from pulmo_models.weights import load_set
from pulmo_node.config import Config, load, resolve
from pulmo_node.encode import ResultOptions
from pulmo_node.errors import ConfigError
from tests.conftest import ROOT

SHIPPED = ROOT / "config" / "node.toml"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, **environment: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, environment)
    return caught.value.problems


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    shipped = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    defaults = asdict(Config())
    for section in ("node", "database", "receive", "tls", "analysis", "delivery", "results", "log", "web", "notify"):
        expected = {key: list(v) if isinstance(v, tuple) else v for key, v in defaults[section].items()}
        assert shipped[section] == expected, section
    (rule,) = shipped["rules"]
    (default_rule,) = defaults["rules"]
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in rule.items()} == default_rule


def test_the_shipped_file_shows_every_key_of_its_pipelines() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    shipped = tomllib.loads(text)["pipelines"] | _switched_off(text)
    for entry in registry.entries():
        defaults = asdict(entry.settings())
        assert shipped[entry.label] == {key: value for key, value in defaults.items() if value is not None}
        for key in (key for key, value in defaults.items() if value is None):
            of_the_weights = getattr(load_set(defaults.get("characteriser", defaults["weights"])).operating_point, key)
            assert f"\n# {key} = {of_the_weights:g}\n" in text, "a key without a default stands there as a comment"


def _switched_off(text: str) -> dict[str, dict[str, object]]:
    """The tables of pipelines that stand there as comments: one # before each line, so before a comment two."""
    lines = [
        line.removeprefix("#") for line in text.splitlines() if line.startswith("#") and line[1:2] not in (" ", "")
    ]
    return dict(tomllib.loads("\n".join(lines))["pipelines"])


def test_what_is_switched_off_can_be_switched_on(tmp_path: Path) -> None:
    """Without the one # each, and with rules that name them."""
    text = SHIPPED.read_text(encoding="utf-8")
    on = "\n".join(
        line[1:] if line.startswith("#") and line[1:2] not in (" ", "") else line for line in text.splitlines()
    )
    config = load(written(tmp_path, on), {})
    assert set(config.pipelines) == {entry.label for entry in registry.entries()}
    assert {"cxr-findings", "cxr-lung-risk"} == set(config.rules[-1].pipelines)
    assert config.rules[-1].destinations == ("sender",)
    assert set(load(SHIPPED, {}).pipelines) == {"ct-nodules"}


def test_the_results_section_holds_the_options_of_the_encoder_with_their_defaults() -> None:
    assert Config().results.options == asdict(ResultOptions())


def test_a_wrong_result_option_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, '[results]\nsegmentation = "surface"\nnegative_report = "none"\nkey_images = 7\n')
    found = problems(path)
    assert {problem.split(":")[0] for problem in found} == {
        "results.segmentation",
        "results.negative_report",
        "results.key_images",
    }


def test_every_key_of_the_shipped_file_has_a_comment() -> None:
    previous = ""
    bare = []
    for line in SHIPPED.read_text(encoding="utf-8").splitlines():
        key = line.split("=")[0].strip()
        if "=" in line and not line.startswith("#") and not previous.startswith("#") and key not in ALONGSIDE:
            bare.append(key)
        previous = line
    assert bare == []


ALONGSIDE = {"max_delay_seconds", "modality", "body_part", "series_description"}
"""Explained by the comment over the key before."""


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    config = resolve({}, base=tmp_path)
    assert config.node.ae_title == "PULMO"
    assert config.node.bind == "127.0.0.1"
    assert config.storage == (tmp_path / "../var").resolve()
    assert config.database_url == f"sqlite:///{config.storage}/pulmo.sqlite"


def test_the_weights_lie_in_the_storage_folder_unless_told_otherwise(tmp_path: Path) -> None:
    assert resolve({"node": {"storage": "s"}}, base=tmp_path).weights_folder == tmp_path / "s" / "weights"
    for named in ("sets", str(tmp_path / "sets")):
        config = resolve({"analysis": {"weights_folder": named}}, base=tmp_path)
        assert config.weights_folder == tmp_path / "sets"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[node]\nport = 1\nae_title = "FILE"\n[peers.orthanc]\nae_title="O"\nhost="h"\nport=2\n')
    environment = {
        "PULMO_NODE__NODE__PORT": "11113",
        "PULMO_NODE__PEERS__ORTHANC__HOST": "192.0.2.10",
        "PULMO_NODE__RECEIVE__ACCEPT_CALLING": '["A", "B"]',
        "PULMO_NODE__PIPELINES__CT_NODULES__PEAK_THRESHOLD": "0.25",
        "UNRELATED__KEY": "1",
    }
    config = load(path, environment)
    assert config.node.port == 11113
    assert config.node.ae_title == "FILE"
    assert config.peers["orthanc"].host == "192.0.2.10"
    assert config.receive.accept_calling == ("A", "B")
    assert config.pipelines["ct-nodules"] == {"peak_threshold": 0.25}


def test_every_error_is_reported_with_its_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [node]
        port = 99999
        ae_title = "seventeen letters"
        colour = "red"
        [receive]
        quiet_seconds = 0
        [peers.orthanc]
        host = "h"
        port = 104
        [pipelines.ct-nodules]
        peak_threshold = 2.0
        sharpness = 1
        [pipelines.mammography]
        [[rules]]
        pipelines = ["ct-nodules", "brain"]
        destinations = ["sender", "elsewhere"]
        [shoes]
        """,
    )
    found = "\n".join(problems(path))
    for key in (
        "node.port", "node.ae_title", "node.colour", "receive.quiet_seconds", "peers.orthanc.ae_title",
        "pipelines.ct-nodules.peak_threshold", "pipelines.ct-nodules.sharpness", "pipelines.mammography", "shoes",
    ):  # fmt: skip
        assert f"{key}: " in found, key
    assert "rules[0].pipelines: there is no [pipelines.brain]" in found
    assert "rules[0].destinations: there is no [peers.elsewhere]" in found


@pytest.mark.parametrize(
    ("text", "said"),
    [("[node\n", "line 1"), ("node = 5\n", "node: "), ("peers = 5\n", "peers: "), ("rules = 1\n", "rules: ")],
)
def test_a_file_of_another_shape_is_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(problems(written(tmp_path, text)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere.toml") in problems(tmp_path / "nowhere.toml")[0]


def test_an_environment_name_without_a_section_is_an_error(tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, ""), PULMO_NODE__PORT="1")
    assert problem.startswith("PULMO_NODE__PORT: ")


def test_the_password_of_the_database_is_not_shown(tmp_path: Path) -> None:
    config = resolve({"database": {"url": "postgresql://pulmo:secret@db/pulmo"}}, base=tmp_path)
    assert config.as_dict()["database"]["url"] == "postgresql://pulmo:***@db/pulmo"
    assert "secret" in config.database_url


@pytest.mark.parametrize(
    ("key", "value"),
    [("retention.delivered_days", "1000000"), ("analysis.lease_seconds", "inf"), ("receive.quiet_seconds", "1e12")],
)
def test_a_time_that_no_clock_reaches_is_an_error_of_the_configuration(tmp_path: Path, key: str, value: str) -> None:
    section, name = key.split(".")
    path = tmp_path / "node.toml"
    path.write_text(f"[{section}]\n{name} = {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=key):
        load(path, {})
