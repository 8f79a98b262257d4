"""benchmarks/neighbour.py without DVC: what it cuts, what it leaves alone, what it makes of the runs."""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import neighbour

ROOT = Path(__file__).parents[1]
STAGES = list(neighbour.SHORT)


def test_what_is_shortened_are_keys_of_the_default_run() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES:
        changed = neighbour.merged(params, neighbour.SHORT[stage])
        assert changed != params and changed.keys() == params.keys()
    assert neighbour.merged(params, neighbour.SHORT["ppo"])["ppo"]["updates"] < params["ppo"]["updates"]
    with pytest.raises(KeyError):
        neighbour.merged(params, {"ppo": {"no_such": {"key": 1}}})


def test_the_stage_reads_fewer_rows_and_the_run_keeps_its_own(tmp_path: Path) -> None:
    artifacts, work = tmp_path / "artifacts", tmp_path / "work"
    work.mkdir()
    (work / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (artifacts / "base/decoder").mkdir(parents=True)
    (artifacts / "base/decoder/model.safetensors").write_bytes(b"weights")
    encoded = artifacts / "encoded/instructions"
    encoded.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        ids = [f"{number:04d}" for number in reversed(range(200))]
        pq.write_table(pa.table({"row_id": ids}), encoded / f"{split}.parquet")
    before = {path: path.read_bytes() for path in artifacts.rglob("*") if path.is_file()}
    neighbour.lay_out(work, "instruct", artifacts, yaml.safe_load((ROOT / "params.yaml").read_text()))
    rows = pq.read_table(work / "artifacts/encoded/instructions/train.parquet")["row_id"].to_pylist()
    assert rows == [f"{number:04d}" for number in range(neighbour.ROWS["instruct"]["instructions"]["train"])]
    weights = work / "artifacts/base/decoder/model.safetensors"
    assert weights.samefile(artifacts / "base/decoder/model.safetensors")
    assert {path: path.read_bytes() for path in before} == before
    assert yaml.safe_load((work / "params.yaml").read_text())["instruct"]["epochs"] == 1


def test_a_run_without_artifacts_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    with pytest.raises(SystemExit, match="is not there: `ajuste run` makes it"):
        neighbour.lay_out(tmp_path, "ppo", tmp_path / "none", yaml.safe_load((ROOT / "params.yaml").read_text()))


def runs(quiet: float, busy: float, out: str = "a") -> list[dict]:
    return [{"stage": "ppo", "way": way, "busy": some, "seconds": busy if some else quiet, "load": 1.0, "threads": 2,
             "outs": {"artifacts/adapters/ppo": out if some else "a"}}
            for way in neighbour.WAYS for some in (False, True)]  # fmt: skip


def test_the_report_says_ratio_and_bytes() -> None:
    options = argparse.Namespace(rounds=1, spins=None)
    assert neighbour.ratio(runs(10, 21), "ppo", "dvc repro") == (10, 21, 2.1)
    assert "| `ppo` | `dvc repro` | 10.0 | 21.0 | 2.10 | 2.2 | yes |" in neighbour.report(runs(10, 21), options)
    other = neighbour.report(runs(10, 21, "b"), options)
    assert other.count("| NO |") == 2


def test_the_neighbour_is_there_for_as_long_as_the_stage() -> None:
    import psutil

    def children() -> set[int]:
        return {child.pid for child in psutil.Process().children()}

    before = children()
    with neighbour.neighbour(True):
        (pid,) = children() - before
        assert psutil.Process(pid).is_running()
    assert children() == before
    with neighbour.neighbour(False):
        assert children() == before
