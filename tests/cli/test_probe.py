"""`ajuste probe`: each way that it can go wrong is one line; a suite in its own environment is quiet and offline."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ajuste.cli import environments
from ajuste.cli.models import probe
from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from tests.cli.registered import run
from tests.serving.conftest import both, server, speakers  # noqa: F401


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    home.cache_clear()
    yield tmp_path
    home.cache_clear()


def line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_suite_must_be_named() -> None:
    with pytest.raises(UsageError, match="ajuste probe garak` or `ajuste probe lm-eval"):
        run(probe.command)


def test_no_server_is_one_line() -> None:
    with pytest.raises(DataError) as error:
        run(probe.command, "garak", "--url", "http://127.0.0.1:9")
    assert line(error).startswith("no server answers at http://127.0.0.1:9") and "`ajuste serve`" in str(error.value)


@pytest.mark.parametrize("url", ["http://example.org:8000", "https://127.0.0.1", "http://127.0.0.1.example.org", "x"])
def test_attacks_stay_on_this_machine(url: str) -> None:
    with pytest.raises(UsageError) as error:
        run(probe.command, "garak", "--url", url)
    assert "is not on this machine" in line(error)


def test_a_folder_must_hold_whole_weights(place: Path) -> None:
    (place / "adapter").mkdir()
    (place / "adapter/adapter_model.safetensors").touch()
    with pytest.raises(UsageError) as error:
        run(probe.command, "lm-eval", "adapter")
    assert "holds no whole decoder" in line(error)


def test_the_version_that_answers_is_the_one_that_is_asked(server, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(probe, "registered_sha256", lambda reference: "ab" * 32)
    url = server[0] if isinstance(server, tuple) else server.url
    target = probe.of_server(url, "assistant")
    assert target.model == "assistant/2", "the champion"
    with pytest.raises(UsageError, match="refused"):
        probe.of_server(url, "nobody")


@pytest.fixture
def suite(place: Path, monkeypatch: pytest.MonkeyPatch):
    """run(code): as if the code were the suite."""
    def start(code: str, url: str | None = None):
        (place / "suite.py").write_text(code)
        python = place / "python"
        python.write_text(f"#!/bin/sh\nshift 3\nexec {sys.executable} {place}/suite.py \"$@\"\n")
        python.chmod(0o755)
        monkeypatch.setattr(environments, "ready", lambda name: True)
        monkeypatch.setattr(environments, "made", lambda name, module: python)
        target = SimpleNamespace(url=url, folder=None, model="assistant/1")
        return probe.run("garak", SimpleNamespace(MODULE="suite", command=lambda *_: []), target, [], 1)
    return start


def test_a_suite_that_fails_is_one_line_with_its_log(suite, place: Path) -> None:
    with pytest.raises(DataError) as error:
        suite("import sys\nprint('first')\nsys.exit('the hub cannot be reached')")
    assert line(error) == (f"garak ended with 1 (the hub cannot be reached): see {place / '.probe/garak/run.log'}")


def test_a_server_that_goes_away_ends_the_suite(suite, monkeypatch) -> None:
    monkeypatch.setattr(probe, "LOOK_SECONDS", 0)
    monkeypatch.setattr(probe, "LOOKS", 2)
    with pytest.raises(DataError) as error:
        suite("import time\ntime.sleep(60)", url="http://127.0.0.1:9")
    assert "went away while garak asked it: see " in line(error)


def test_a_suite_sees_no_key_and_no_home_of_the_user(suite, place: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    suite(f"import json, os\njson.dump(dict(os.environ), open({str(place / 'seen.json')!r}, 'w'))")
    seen = json.loads((place / "seen.json").read_text())
    assert "secret" not in json.dumps(seen) and "HTTPS_PROXY" not in seen
    assert seen["HOME"] == str(place / ".probe/garak/home") and seen["HF_HUB_OFFLINE"] == "1"
    assert seen["DO_NOT_TRACK"] == "1" and seen["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_one_line(place: Path, monkeypatch) -> None:
    (place / "infra/probe").mkdir(parents=True)
    (place / "infra/probe/garak.txt").write_text("garak==0.17.1\n")
    for key, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1",
                       "PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(DataError) as error:
        environments.made("garak", "garak")
    said = line(error)
    assert said.startswith("the environment of garak could not be made (ERROR: ") and "setup.log" in said
    assert "a package registry once" in said and not environments.ready("garak")


def test_locks_pin_every_package_once() -> None:
    from ajuste.core.imports import ROOT

    for name in probe.SUITES:
        lines = (ROOT / environments.LOCKS / f"{name}.txt").read_text().splitlines()
        pinned = [one.partition("==") for one in lines if not one.startswith("#")]
        assert all(version for _, _, version in pinned) and len({one[0].lower() for one in pinned}) == len(pinned)
    from ajuste.judging.suites import garak, lm_eval

    locks = {name: (ROOT / environments.LOCKS / f"{name}.txt").read_text() for name in probe.SUITES}
    assert f"garak=={garak.VERSION}\n" in locks["garak"] and f"lm_eval=={lm_eval.VERSION}\n" in locks["lm-eval"]


def test_show_says_what_was_measured(capsys) -> None:
    run(probe.command, "--show")
    assert "nothing was measured yet" in capsys.readouterr().out
