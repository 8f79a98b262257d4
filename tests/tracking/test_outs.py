"""Two outs, number by number: what is equal, within a tolerance, different, and where."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ajuste.tracking.again.outs import DIFFERENT, EQUAL, WITHIN, compare, difference


def tensors(path: Path, **changed: torch.Tensor) -> Path:
    save_file({"a": torch.tensor([1.0, -4.0, 0.5]), "b": torch.arange(6).reshape(2, 3), **changed}, path)
    return path


@pytest.mark.parametrize(
    ("changed", "expected", "where"),
    [
        ({"a": torch.tensor([1.0, -4.5, 0.5])}, 0.125, "tensor a"),  # relative above 1: 0.5 / 4
        ({"a": torch.tensor([1.0, -4.0, 0.25])}, 0.25, "tensor a"),  # absolute below
        ({"a": torch.tensor([1.0, -4.0, math.nan])}, math.inf, "tensor a"),
        ({"b": torch.arange(6).reshape(2, 3) + 1}, math.inf, "tensor b"),  # integers count, they do not measure
        ({"b": torch.arange(6)}, math.inf, "tensor b"),
        ({"c": torch.zeros(1)}, math.inf, "tensor c"),
        ({"a": torch.tensor([1.0, -4.0, 0.5]).bfloat16()}, math.inf, "tensor a"),
    ],
)
def test_tensors(tmp_path: Path, changed: dict, expected: float, where: str) -> None:
    size, place = difference(tensors(tmp_path / "old.safetensors"), tensors(tmp_path / "new.safetensors", **changed))
    assert size == expected and place.startswith(where)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("new", "expected", "where"),
    [
        ({"loss": 0.5001}, 1e-4, "loss"),
        ({"rows": 11}, math.inf, "rows"),
        ({"label": "bad"}, math.inf, "label"),
        ({"sha256": "b" * 64}, 0.0, ""),  # names bytes that differ; it is no number
        ({"scores": [1.0, 200.2]}, 0.001, "scores[1]"),
        ({"scores": [1.0]}, math.inf, "scores"),
    ],
)
def test_numbers_of_json_and_parquet(tmp_path: Path, suffix: str, new: dict, expected: float, where: str) -> None:
    old = {"loss": 0.5, "rows": 10, "label": "good", "sha256": "a" * 64, "scores": [1.0, 200.0]}
    paths = []
    for name, row in (("old", old), ("new", old | new)):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n")
        paths.append(path)
    size, place = difference(*paths)
    assert size == pytest.approx(expected, rel=1e-6) and where in place


def test_other_files_by_their_bytes_and_damaged_ones(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"abcd")
    (tmp_path / "new.txt").write_bytes(b"abXd")
    assert difference(tmp_path / "old.txt", tmp_path / "new.txt") == (math.inf, "byte 2 and others")
    for suffix in (".json", ".safetensors", ".parquet"):
        for name in ("old", "new"):
            (tmp_path / f"{name}{suffix}").write_bytes(b"{")
        assert difference(tmp_path / f"old{suffix}", tmp_path / f"new{suffix}")[0] == math.inf


def test_an_out_is_equal_within_the_tolerance_or_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ajuste.core.stages import md5_of

    monkeypatch.setattr("ajuste.tracking.again.outs.cached_bytes", lambda md5: None)
    monkeypatch.setattr("ajuste.tracking.again.outs.cached", lambda md5: None)
    kept, new = tmp_path / "kept", tmp_path / "clone/artifacts/x"
    for folder, value in ((kept, 0.5), (new, 0.5001)):
        folder.mkdir(parents=True)
        tensors(folder / "model.safetensors", a=torch.tensor([value]))
        (folder / "same.txt").write_text("same")
    def lock(md5: str) -> dict:
        return {"train": {"outs": [{"path": "artifacts/x", "md5": md5}]}}

    recorded, made, where = lock(md5_of(kept)), lock(md5_of(new)), {"artifacts/x": kept}
    (out,) = compare(recorded, made, tmp_path / "clone", 1e-3, where)
    assert out.verdict == WITHIN and out.largest == pytest.approx(1e-4, rel=1e-2)
    assert "model.safetensors: tensor a" in out.text()
    for tolerance in (1e-5, None):  # None: the same kind of processor
        assert compare(recorded, made, tmp_path / "clone", tolerance, where)[0].verdict == DIFFERENT
    assert compare(recorded, recorded, tmp_path / "clone", None)[0].verdict == EQUAL
    assert "not in the DVC cache" in compare(recorded, made, tmp_path / "clone", 1.0)[0].text()
    assert compare(recorded, {}, tmp_path / "clone", 1.0, where)[0].where == "it was not made"
    (new / "more.txt").write_text("x")
    assert compare(recorded, lock("0" * 32), tmp_path / "clone", 1.0, where)[0].where == "more.txt is new"
