"""`ajuste drift` on the artifacts of a run in miniature: files and logs, exit codes, messages."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from ajuste.cli.main import app
from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import home
from ajuste.tracking.registry import registry, scores
from ajuste.tracking.registry.families.classifier import CLASSIFIER
from ajuste.tracking.verdicts import drift
from tests.made.tiny_classifiers import LABELS
from tests.tracking import projects

NAME = "reviews-classifier"
WORDS = "the film plot actor is not very good bad warm dull slow funny story".split()
OTHER = "der Film Handlung Schauspieler ist nicht sehr gut schlecht warm langweilig langsam".split()
SETTINGS = {"window": 30, "reference_rows": 60, "alpha": 0.01, "correction": "holm", "permutations": 499,
            "min_length": 0.2, "min_vocabulary": 0.05, "min_classes": 0.3, "min_embeddings": 0.1, "drifted": 2,
            "of": 5}  # fmt: skip
COMPUTE = {"dtype": "float32", "device": "cpu", "threads": 1, "seed": 0}


def texts(rows: int, seed: int, words: list[str] = WORDS) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(rows)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the texts of its rows."""
    root = projects.make(tmp_path_factory.mktemp("drift") / "run")
    folder = root / "artifacts/validated/reviews"
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "validation", "test")):
        ids = pq.read_table(root / f"artifacts/encoded/reviews/{split}.parquet")["row_id"].to_pylist()
        rows = {"row_id": [*ids, "ff"], "text": [*texts(len(ids), number), "left out by encode"],
                "label": [*(i % len(LABELS) for i in range(len(ids))), 0]}  # fmt: skip
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    (root / "params.yaml").write_text(yaml.safe_dump({"compute": COMPUTE}))
    (root / "policy.yaml").write_text(yaml.safe_dump({"drift": SETTINGS}))
    return root


@pytest.fixture
def served(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The LoRA classifier answers; its tags. Logs stand in tmp_path."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("AJUSTE_HOME", str(tmp_path))
    home.cache_clear()
    tags = {"method": "classify", "validation_rows": scores.rows_digest(CLASSIFIER, "validation")}
    folder = made / "artifacts/merged/classify_lora"
    monkeypatch.setattr(
        registry, "resolve", lambda name: registry.Version(name, "3", "champion", folder, tags, None))
    monkeypatch.setattr(registry, "names", lambda: [NAME, "ratings-reward"])
    yield tags
    home.cache_clear()


def ajuste(*args: object) -> tuple[int, str]:
    """Exit code and standard output; an error comes out as what main() turns into one line."""
    result = CliRunner().invoke(app, ["drift", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def log(folder: Path, lines: list[str], version: str = "3") -> None:
    (folder / ".requests").mkdir(exist_ok=True)
    with (folder / f".requests/{NAME}.jsonl").open("a") as file:
        for i, text in enumerate(lines):
            row = {"time": f"2026-01-01T00:00:{i:02d}Z", "name": NAME, "version": version, "kind": "classifier",
                   "text": text, "label": LABELS[i % 2], "probability": 0.8}  # fmt: skip
            file.write(json.dumps(row) + "\n")


def test_files_with_and_without_drift(served: dict, tmp_path: Path) -> None:
    for name, lines, code in (("same", texts(30, 9), 0), ("other", texts(90, 9, OTHER), 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        (tmp_path / f"{name}.csv").write_text("id,review\n" + "\n".join(f"{i},{line}" for i, line in enumerate(lines)))
        found = []
        for args in ([f"{name}.txt"], [f"{name}.csv", "--map", "text=review"]):
            done, out = ajuste(NAME, "--json", "--file", tmp_path / args[0], *args[1:])
            assert done == code
            found.append(json.loads(out)[NAME])
        assert found[0] == found[1] and (found[0]["rows"], found[0]["reference_rows"]) == (30, 60)
        by = {finding["name"]: finding for finding in found[0]["findings"]}
        assert set(by) == {"length", "vocabulary", "classes", "embeddings"}
        assert by["vocabulary"]["drifts"] is bool(code) and by["embeddings"]["drifts"] is bool(code)
        assert not by["length"]["drifts"]
    assert ajuste(NAME, "--file", tmp_path / "other.txt")[0] == 1


def test_true_labels_are_compared_with_true_labels(served: dict, tmp_path: Path) -> None:
    lines = texts(30, 9)
    for share, code in ((0.5, 0), (0.95, 1)):
        rows = "".join(json.dumps({"text": line, "label": LABELS[i >= share * 30]}) + "\n"
                       for i, line in enumerate(lines))  # fmt: skip
        (tmp_path / "labelled.jsonl").write_text(rows)
        done, out = ajuste(NAME, "--json", "--file", tmp_path / "labelled.jsonl", "--map", "label=label")
        classes = json.loads(out)[NAME]["findings"][2]
        assert done == code and classes["drifts"] is bool(code) and "50% are usual" in classes["said"]


def test_the_latest_window_of_the_log(served: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ajuste serve --log-requests"):
        ajuste()
    with pytest.raises(UsageError, match=f"no request of `{NAME}` was logged: .*ajuste serve --log-requests"):
        ajuste(NAME)
    log(tmp_path, texts(20, 1))
    log(tmp_path, texts(5, 1), version="2")
    with pytest.raises(DataError, match=r"holds 20 requests of reviews-classifier/3 \(5 of other versions\), .* is 30"):
        ajuste(NAME)
    log(tmp_path, texts(45, 2, OTHER))
    done, out = ajuste()
    assert done == 1 and "vocabulary" in out and NAME in out
    assert not (tmp_path / "mlruns/mlflow.db").exists(), "the command records nothing"


def test_messages(served: dict, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "few.txt").write_text("one\n")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for args, error, message in (
        (["--file", tmp_path / "few.txt"], UsageError, "--file needs the NAME"),
        ([NAME, "--map", "text=a"], UsageError, "--map belongs to --file"),
        ([NAME, "--file", tmp_path / "few.txt"], DataError, "the window has 1 texts"),
        ([NAME, "--file", tmp_path / "none.txt"], DataError, "none.txt is missing"),
        ([NAME, "--file", tmp_path / "t.csv"], DataError, "has no column `text`"),
        ([NAME, "--file", tmp_path / "t.doc"], UsageError, "no known ending"),
        (["ratings-reward", "--file", tmp_path / "few.txt"], UsageError, "drift is of classifiers"),
    ):
        with pytest.raises(error, match=message):
            ajuste(*args)
    right = served["validation_rows"]
    served["validation_rows"] = "of another run"
    with pytest.raises(UsageError, match="was trained beside other rows"):
        ajuste(NAME, "--file", tmp_path / "few.txt")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"compute": COMPUTE}))
    Path("policy.yaml").write_text(yaml.safe_dump({"drift": SETTINGS}))
    with pytest.raises(UsageError, match="dvc checkout"):
        ajuste(NAME, "--file", tmp_path / "few.txt")
    served["validation_rows"] = right  # a deployed run made it, in a worktree
    (tmp_path / ".prefect/worktrees").mkdir(parents=True)
    (tmp_path / ".prefect/worktrees/adapt").symlink_to(made)
    (tmp_path / "same.txt").write_text("\n".join(texts(30, 9)))
    assert ajuste(NAME, "--file", tmp_path / "same.txt")[0] == 0
    Path("policy.yaml").write_text("gate: {}\n")
    with pytest.raises(UsageError, match="section `drift` is missing"):
        drift.config_of()
