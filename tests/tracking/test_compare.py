"""Compare: the right figures side by side, an honest difference, and a table that fits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from ajuste.core.errors import UsageError
from ajuste.tracking.comparing import compare
from ajuste.tracking.comparing import text as text
from ajuste.tracking.registry import registry
from ajuste.tracking.registry.families.classifier import Classifier
from tests.tracking import projects

NAME = "reviews-classifier"
SCHEMA = {
    "version": str, "aliases": list, "alias_history": dict, "created": int, "strategy": str, "method": str,
    "test": dict, "validation": dict, "forgetting": dict, "alignment": dict,
    "trained_parameters": dict, "seconds": float, "feature_seconds": (float, type(None)),
    "peak_memory_mb": float, "size_bytes": int, "proof": (dict, type(None)), "adapter_version": (str, type(None)),
    "base_version": (str, type(None)),
    "base": dict, "sha256": str, "data": str, "dvc": str, "git_commit": str, "dirty": (bool, type(None)), "run_id": str,
    "trained_run": str, "reproduced": (dict, type(None)),
}


@pytest.fixture
def found(project: Path) -> dict:
    return compare.compare(NAME)


def test_every_figure_is_the_one_that_was_measured(found: dict) -> None:
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"name", "versions", "left_out", "differing_parameters", "same_test_rows", "paired", "answers"}
    assert found["answers"] == []
    assert [row["strategy"] for row in found["versions"]] == ["frozen", "full", "lora"]
    for row in found["versions"]:
        assert set(row) == set(SCHEMA)
        assert not [key for key, kind in SCHEMA.items() if not isinstance(row[key], kind)]
        result = json.loads(Path(f"artifacts/evaluated/classify/{row['strategy']}.json").read_text())
        assert all(row["test"][metric] == result[metric] for metric in ("accuracy", "macro_f1", "mcc", "auc", "ece"))
        assert row["validation"]["macro_f1"] == projects.VALIDATION[row["strategy"]]
        assert row["trained_parameters"]["trainable"] == projects.TRAINABLE[row["strategy"]]
    frozen, full, lora = found["versions"]
    assert full["seconds"] == 7.5 and lora["seconds"] == 10.0 + 12.5  # the adapter and its merge
    assert lora["aliases"] == ["challenger"] and "best validation" in lora["alias_history"]["challenger"]
    assert lora["proof"] == {"max_logit_difference": 4.8e-7, "tolerance": 1e-4, "equal_predictions": 1.0,
                             "rows": projects.TEST_ROWS, "dtype": "float32"}
    assert frozen["proof"] is None and lora["adapter_version"] == "1"


def test_only_parameters_that_differ(found: dict) -> None:
    differing = found["differing_parameters"]
    assert differing["lr"] == {"1": "0.001", "2": "5e-05", "3": "0.0005"}
    assert differing["r"] == {"1": None, "2": None, "3": "8"}
    # not seed, task, encode.reviews.max_tokens
    assert set(differing) == {"lr", "r", "epochs", "target_modules", "merge.classify.dtype"}


def test_the_paired_difference_is_that_of_a_plain_bootstrap(found: dict) -> None:
    table = pq.read_table("artifacts/evaluated/classify/predictions.parquet").to_pylist()
    right = {s: {r["row_id"]: r["label"] == r["prediction"] for r in table if r["strategy"] == s}
             for s in projects.STRATEGIES}
    assert [(pair["version"], pair["against"]) for pair in found["paired"]] == [("1", "3"), ("2", "3")]
    for pair, strategy in zip(found["paired"], ("frozen", "full"), strict=True):
        rows = sorted(right["lora"])
        assert pair["metric"] == "accuracy"
        d = np.array([int(right[strategy][row]) - int(right["lora"][row]) for row in rows])
        assert pair["difference"] == pytest.approx(d.mean()) and pair["rows"] == projects.TEST_ROWS
        rng = np.random.default_rng(5)  # another generator and loop: the interval agrees within its own noise
        means = [d[rng.integers(0, len(d), len(d))].mean() for _ in range(4000)]
        assert (pair["low"], pair["high"]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)
        expected = "better" if pair["low"] > 0 else "worse" if pair["high"] < 0 else "no clear difference"
        assert pair["verdict"] == expected


def test_a_real_difference_is_called_so(project: Path, monkeypatch) -> None:
    rights = {"1": {f"{i}": (i % 4 == 0, 1) for i in range(200)}, "2": {f"{i}": (i % 4 != 0, 1) for i in range(200)},
              "3": {f"{i}": (i % 4 == 0, 1) for i in range(50, 250)}}
    monkeypatch.setattr(Classifier, "recorded", lambda self, version: rights[version.version])
    first, second = compare.compare(NAME)["paired"]
    assert first["rows"] == 150 and first["difference"] == 0 and first["verdict"] == "no clear difference"
    assert second["verdict"] == "better" and second["low"] > 0.2


def test_which_versions_are_shown(project: Path) -> None:
    assert [v["version"] for v in compare.compare(NAME, ["2", "@challenger", "challenger"])["versions"]] == ["2", "3"]
    with pytest.raises(UsageError, match="no version `9`: it has 1, 2, 3, challenger"):
        compare.compare(NAME, ["9"])
    with pytest.raises(UsageError, match="no registered model `nobody`: registered are .*reviews-classifier"):
        compare.compare("nobody")


def test_the_default_leaves_out_older_versions_and_says_so() -> None:
    def version(number: int, strategy: str, *aliases: str) -> registry.Version:
        return registry.Version("x", str(number), None, None, {"strategy": strategy}, None, aliases)

    everything = [version(1, "full", "champion"), version(2, "full"), version(3, "lora"), version(4, "full")]
    assert [v.version for v in compare._choose("x", everything, [])] == ["1", "3", "4"]


def test_a_table_fits_the_width_and_shows_every_version(found: dict) -> None:
    many = {**found, "versions": found["versions"] * 3}
    for width in (80, 100, 140):
        lines = text.to_terminal(many, width).splitlines()
        assert max(map(len, lines)) <= width
        shown = "\n".join(lines)
        assert shown.count("validation macro-F1") > 1  # more versions than fit: further tables
        assert shown.count("challenger") >= 3 and "[" in shown and "4.8e-07" in shown


def test_a_version_that_was_made_again_says_so(project: Path) -> None:
    version = registry.versions(NAME)[0]
    tag = json.dumps({"when": "2026-01-02T03:04:05Z", "verdict": "bit-equal", "outs": 5})
    row = compare._row(replace(version, tags={**version.tags, "reproduced": tag}))
    found = compare.compare(NAME)
    found["versions"][0]["reproduced"] = row["reproduced"]
    assert dict(text.rows(found))["made again"][:2] == ["bit-equal, 2026-01-02", ""]


def test_markdown_is_a_table_with_a_cell_for_every_version(found: dict) -> None:
    found["versions"][0]["strategy"] = "a|b<script>"
    lines = [line for line in text.to_markdown(found).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| strategy | a\\|b&lt;script> | full | lora |" in lines
    accuracy = found["versions"][2]["test"]["accuracy"]
    assert f"{accuracy['value']:.3f} [{accuracy['low']:.3f} {accuracy['high']:.3f}]" in "\n".join(lines)


def test_the_command_writes_what_it_shows(project: Path, tmp_path: Path) -> None:
    from ajuste.cli.models.compare import command

    app = typer.Typer()
    app.command()(command)
    runner, file = CliRunner(), tmp_path / "new" / "compare.json"
    done = runner.invoke(app, [NAME, "1", "3", "--format", "json", "--output", str(file)])
    assert done.exit_code == 0 and str(file) in done.output.replace("\n", "")
    assert json.loads(file.read_text())["versions"] == compare.compare(NAME, ["1", "3"])["versions"]
    shown = runner.invoke(app, [NAME, "--format", "markdown"])
    assert shown.exit_code == 0 and shown.output.startswith(f"## {NAME}\n")
    assert "test accuracy" in runner.invoke(app, [NAME]).output
    (tmp_path / "file").touch()
    wrong = runner.invoke(app, [NAME, "--output", str(tmp_path / "file" / "x")])
    assert isinstance(wrong.exception, UsageError)


def test_parameters_of_stages_of_one_verb_do_not_overwrite_each_other() -> None:
    from types import SimpleNamespace

    from ajuste.tracking.comparing.compare import _parameters

    given = {"merge_ppo": {"rows": "8"}, "ppo": {"lr": "6e-4"}, "base_decoder": {"source": "d"},
             "base_encoder": {"source": "e"}, "gold": {"rows": "2000"}, "reward": {"compute.seed": "0"}}  # fmt: skip
    chain = [SimpleNamespace(data=SimpleNamespace(tags={"ajuste.stage": stage}, params=params))
             for stage, params in given.items()]  # fmt: skip
    assert _parameters(chain, "merge_ppo") == {
        "merge.ppo.rows": "8", "lr": "6e-4", "base.decoder.source": "d", "base.encoder.source": "e",
        "gold.rows": "2000", "compute.seed": "0",
    }  # fmt: skip
