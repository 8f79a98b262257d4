"""Stage `evaluate` against scikit-learn on what it wrote itself, and its slices by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sk

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.models.classifier import load, logits_of
from ajuste.models.folder import load_tokenizer
from ajuste.rows.encoded.labelled import read_rows
from tasks.evaluate import classify as stage
from tasks.evaluate.classify import ClassifyConfig, _length_slice, evaluate_classify
from tests.made.tiny_classifiers import tiny_base, tiny_full
from tests.made.tiny_rows import sentence_set, sentences, write_set

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
CONFIG = ClassifyConfig(bootstrap=200, batch_rows=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], Path, dict]:
    """(encoded set, models, evaluated folder, reports) of two random models."""
    folder = tmp_path_factory.mktemp("evaluate")
    base = tiny_base(folder / "base")
    models = {name: tiny_full(base, folder / name, seed) for name, seed in (("full", 3), ("lora", 4))}
    encoded = sentence_set(folder / "encoded", load_tokenizer(base))
    return encoded, models, folder / "out", evaluate_classify(CONFIG, COMPUTE, models, encoded, folder / "out")


def test_the_numbers_are_scikit_learns_on_the_written_predictions(made) -> None:
    encoded, models, out, _ = made
    rows = read_rows(encoded, "test", "sequence")
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    assert len(table) == 2 * len(rows)
    for strategy in models:
        report = json.loads((out / f"{strategy}.json").read_text())
        mine = table[table.strategy == strategy]
        assert mine.row_id.tolist() == rows.table["row_id"].to_pylist()
        probabilities = np.stack(mine.probabilities)
        assert report["accuracy"]["value"] == rounded(sk.accuracy_score(mine.label, mine.prediction))
        assert report["macro_f1"]["value"] == rounded(sk.f1_score(mine.label, mine.prediction, average="macro"))
        assert report["mcc"]["value"] == rounded(float(sk.matthews_corrcoef(mine.label, mine.prediction)))
        assert report["auc"]["value"] == pytest.approx(sk.roc_auc_score(mine.label, probabilities[:, 1]), rel=1e-5)
        assert report["confusion"] == sk.confusion_matrix(mine.label, mine.prediction, labels=[0, 1]).tolist()
        brier = sk.brier_score_loss(mine.label, probabilities[:, 1])
        assert report["brier"]["value"] == pytest.approx(brier, rel=1e-5)
        assert report["nll"]["value"] == pytest.approx(sk.log_loss(mine.label, probabilities), rel=1e-5)
        for name in ("accuracy", "macro_f1", "mcc", "auc", "ece", "brier", "nll"):
            assert report[name]["low"] <= report[name]["value"] <= report[name]["high"]
        assert 0 < report["ece_plain"] < 1


def test_predictions_are_those_of_the_model(made) -> None:
    encoded, models, out, _ = made
    model, _, _ = load(models["full"])
    expected = torch.softmax(logits_of(model, read_rows(encoded, "test", "sequence").ids, 4), dim=1)
    table = pq.read_table(out / "predictions.parquet").to_pandas()
    found = torch.tensor(np.stack(table[table.strategy == "full"].probabilities))
    assert torch.allclose(found, expected, atol=1e-5)


def test_slices_hold_every_row_once(made) -> None:
    encoded, _, out, reports = made
    rows = read_rows(encoded, "test", "sequence")
    for name, slices in reports["full"]["slices"].items():
        assert sum(part["rows"] for part in slices.values()) == len(rows), name
        right = sum(part["rows"] * part["accuracy"] for part in slices.values())
        assert right / len(rows) == pytest.approx(reports["full"]["accuracy"]["value"])
    assert set(reports["full"]["slices"]) == {"source", "length", "label"}
    assert set(reports["full"]["slices"]["source"]) == {"even", "odd"}
    assert reports["full"]["slices"]["label"]["positive"]["rows"] == sum(rows.labels)


def test_two_evaluations_write_the_same_bytes(made, tmp_path: Path) -> None:
    encoded, models, out, _ = made
    evaluate_classify(CONFIG, COMPUTE, models, encoded, tmp_path)
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_the_last_bits_of_a_logit_change_no_figure(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another processor's would; the report in memory moves, what is written of it does not."""
    encoded, models, out, reports = made
    monkeypatch.setattr(stage, "logits_of", lambda *args: logits_of(*args).double() * (1 + 1e-7))
    other = evaluate_classify(CONFIG, COMPUTE, models, encoded, tmp_path)
    assert other["full"]["ece"] != reports["full"]["ece"], "nothing moved: this test could not fail"
    for strategy in models:
        assert (tmp_path / f"{strategy}.json").read_bytes() == (out / f"{strategy}.json").read_bytes()


def test_length_slices_sort_by_length() -> None:
    names = [_length_slice(n) for n in (1, 16, 17, 64, 65, 512, 513)]
    assert names == ["001-016", "001-016", "017-032", "033-064", "065-128", "257-512", "513+"]
    assert sorted(names) == names


def test_a_class_without_test_rows_has_no_auc_and_the_rest_is_measured(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    labels = ["negative", "neutral", "positive"]
    model = tiny_full(base, tmp_path / "model", labels=labels)
    encoded = write_set(tmp_path / "encoded", {"test": sentences(load_tokenizer(base), 20, 1)}, labels)
    report = evaluate_classify(CONFIG, COMPUTE, {"full": model}, encoded, tmp_path / "out")["full"]
    assert report["auc"]["value"] is None and report["accuracy"]["value"] is not None
    assert "NaN" not in (tmp_path / "out" / "full.json").read_text()


def test_what_does_not_fit_is_refused_with_the_folder(made, tmp_path: Path) -> None:
    encoded, models, _, _ = made
    base = tiny_base(tmp_path / "base")
    with pytest.raises(UsageError, match="ajuste.json is missing"):
        evaluate_classify(CONFIG, COMPUTE, {"full": base}, encoded, tmp_path / "a")
    other = tiny_full(base, tmp_path / "other", labels=["bad", "good"])
    with pytest.raises(UsageError, match=r"was trained for labels \['bad', 'good'\]"):
        evaluate_classify(CONFIG, COMPUTE, {"full": other}, encoded, tmp_path / "b")
    empty = write_set(
        tmp_path / "empty", {"test": sentences(load_tokenizer(base), 5, 1).slice(0, 0)}, ["negative", "positive"]
    )
    with pytest.raises(DataError, match="test.parquet has no rows"):
        evaluate_classify(CONFIG, COMPUTE, models, empty, tmp_path / "c")
