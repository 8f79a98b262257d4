"""A preset changes the values it names, and nothing else of the file: no comment, no order, no other value."""

from pathlib import Path

import pytest
import yaml

from ajuste.cli.project.preset import apply, command
from ajuste.core.errors import UsageError

PARAMS = """\
# every number
compute:
  dtype: float32        # float32 | bfloat16
  threads: 2
encode:
  reviews:
    # a comment of its own
    sources: [rotten_tomatoes]   # empty: all
    rows: {train: 4000, test: null}   # null: all
    limit: null
    tolerance: 1.0e-4   # above it: refused
    lr: 5e-5
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def preset(project: Path, text: str) -> list:
    (project / "presets" / "one.yaml").write_text(text)
    return apply("one", project / "params.yaml")


def test_named_values_change_and_every_other_byte_stays(project: Path) -> None:
    changes = preset(project, "compute: {threads: 8}\nencode: {reviews: {rows: {train: null}, lr: 1e-3}}\n")
    assert [(key, old, new) for key, old, new in changes] == [
        ("compute.threads", 2, 8),
        ("encode.reviews.rows.train", 4000, None),
        ("encode.reviews.lr", 5e-5, 1e-3),
    ]
    expected = PARAMS.replace("threads: 2", "threads: 8").replace("train: 4000", "train: null").replace("5e-5", "1e-3")
    assert (project / "params.yaml").read_text() == expected


def test_a_list_is_replaced_as_a_whole(project: Path) -> None:
    assert preset(project, "encode: {reviews: {sources: [a, b]}}") == [
        ("encode.reviews.sources", ["rotten_tomatoes"], ["a", "b"])
    ]
    assert yaml.safe_load((project / "params.yaml").read_text())["encode"]["reviews"]["sources"] == ["a", "b"]
    assert "# empty: all" in (project / "params.yaml").read_text()


def test_a_second_time_changes_nothing(project: Path) -> None:
    preset(project, "compute: {threads: 8}")
    before = (project / "params.yaml").read_bytes()
    assert preset(project, "compute: {threads: 8}") == []
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("compute: {thraeds: 8}", "compute.thraeds"),
        ("compute: 3", "compute"),
        ("compute: {threads: {a: 1}}", "compute.threads"),
        ("compute: [", "presets/one.yaml"),
    ],
)
def test_a_wrong_preset_is_refused_by_name_and_writes_nothing(project: Path, text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        preset(project, text)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert (project / "params.yaml").read_text() == PARAMS


def test_an_unknown_preset_is_refused_with_the_known_ones(project: Path) -> None:
    (project / "presets" / "tiny.yaml").write_text("compute: {threads: 1}")
    with pytest.raises(UsageError, match="no preset `huge`: presets are tiny"):
        apply("huge", project / "params.yaml")


def test_the_list_shows_what_each_preset_is_for(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "presets" / "big.yaml").write_text("# All rows,\n# on one GPU. And more.\ncompute: {threads: 1} # no\n")
    (project / "presets" / "bare.yaml").write_text("compute: {threads: 1}\n")
    command()
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["bare"],
        ["big", "All", "rows,", "on", "one", "GPU"],
    ]


def test_the_command_prints_each_change(project: Path, capsys: pytest.CaptureFixture) -> None:
    (project / "presets" / "one.yaml").write_text("encode: {reviews: {rows: {test: 1}, sources: [a, null]}}")
    command("one")
    assert capsys.readouterr().out.splitlines() == [
        "encode.reviews.rows.test: null -> 1",
        'encode.reviews.sources: ["rotten_tomatoes"] -> ["a", null]',
    ]
    command("one")
    assert "already" in capsys.readouterr().out


def test_every_preset_of_the_project_fits_its_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    for file in sorted((root / "presets").glob("*.yaml")):
        copy = tmp_path / f"{file.stem}.yaml"
        copy.write_text((root / "params.yaml").read_text())
        assert apply(file.stem, copy), f"{file.name} changes nothing"
        assert copy.read_text().count("#") == (root / "params.yaml").read_text().count("#")


def test_the_preset_for_a_gpu_raises_every_batch_that_a_model_computes() -> None:
    root = Path(__file__).parents[2]
    params, gpu = (yaml.safe_load((root / name).read_text()) for name in ("params.yaml", "presets/gpu.yaml"))

    def batches(section: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
        found = {}
        for key, value in section.items():
            if isinstance(value, dict):
                found |= batches(value, (*path, key))
            elif key in ("batch_rows", "batch_tokens", "micro_rows"):
                found[(*path, key)] = value
        return found

    before, after = batches(params), batches(gpu)
    rows_alone = {path for path in before if path[0] in ("validate", "encode")}  # no model computes there
    assert set(after) == set(before) - rows_alone
    assert all(after[path] > before[path] for path in after), [p for p in after if after[p] <= before[p]]
    assert gpu["compute"] == {"dtype": "bfloat16", "device": "cuda"}
