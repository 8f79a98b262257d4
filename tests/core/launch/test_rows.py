"""Validation and encoding with their batches on a Ray cluster: the files that one process writes, byte for byte."""

import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ajuste.core.errors import DataError
from ajuste.core.launch.where import Spread
from ajuste.core.params import Compute
from tasks.encode.instructions import encode_instructions
from tasks.encode.reviews import ReviewsConfig, encode_reviews
from tasks.validate.instructions import validate_instructions
from tasks.validate.reviews import validate_reviews
from tests.made import instruction_files, tiny_classifiers, tiny_decoders
from tests.tasks import test_encode_instructions, test_validate, test_validate_instructions

if importlib.util.find_spec("ray") is None:
    pytest.skip("the extra `cluster` is not installed", allow_module_level=True)

from ajuste.core.launch import rows  # noqa: E402
from tests.made import raylets  # noqa: E402

COMPUTE = Compute(dtype="float32", device="cpu", threads=1, seed=0)
LABELS = ["bad", "good"]


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    """Two nodes, with windows so small that there are several."""
    with raylets.cluster(2) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BATCHES_A_CPU", 4)
        patch.setenv("AJUSTE_HOME", str(tmp_path_factory.mktemp("home")))
        yield partial(rows.spread, address=cluster.address)


def same_files(here: Path, there: Path) -> int:
    """How many files both have, all of equal bytes."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (here, there)]
    assert names[0] == names[1]
    files = [name for name in names[0] if (here / name).is_file()]
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    return len(files)


def reviews(folder: Path, number: int) -> Path:
    """A set of short rows; some are empty, repeated, nearly repeated or of no label."""
    rng, made = random.Random(0), []
    for n in range(number):
        text = test_validate.sentence(rng).encode()[:60]
        text = b"  " if n % 50 == 7 else made[-5][0] + b" ba" if n % 40 == 9 else text
        made.append(made[-3] if n % 30 == 11 else (text, b"4" if n % 60 == 3 else LABELS[n % 2].encode()))
    return test_validate.make_set(folder, made, LABELS)


def both_ways(folder: Path, on_ray: Spread, stages: Callable[[Path, Spread], None]) -> int:
    for name, spread in (("here", map), ("there", on_ray)):
        stages(folder / name, spread)
    return same_files(folder / "here", folder / "there")


def reviews_both_ways(folder: Path, on_ray: Spread, number: int, batch_rows: int) -> int:
    data, base = reviews(folder / "mine", number), tiny_classifiers.tiny_base(folder / "base")
    rules = test_validate.config(batch_rows=batch_rows)
    limits = {"train": number // 2, "validation": None, "test": None}
    config = ReviewsConfig(max_tokens=16, sources=[], rows=limits, unknown_share=1.0, batch_rows=batch_rows)

    def stages(out: Path, spread: Spread) -> None:
        validate_reviews(rules, COMPUTE, data, out / "validated", spread)
        encode_reviews(config, COMPUTE, out / "validated", base, out / "encoded", spread)

    return both_ways(folder, on_ray, stages)


def test_reviews_come_to_the_same_files(on_ray: Spread, tmp_path: Path) -> None:
    assert reviews_both_ways(tmp_path, on_ray, 2000, 128) == 11


@pytest.mark.slow
def test_instructions_come_to_the_same_files(on_ray: Spread, tmp_path: Path) -> None:
    """With rows that no response fits into, and a source that is taken twice."""
    rows = instruction_files.pairs(300, seed=1)
    lines = [instruction_files.ROWS["messages"](*row) for row in [*rows, *rows[:9]]]
    judged = "\n".join(json.dumps({"text": row[0]}) for row in rows[:5])
    instruction_files.write_set(tmp_path / "control", {"c.jsonl": judged}, [{"layout": "text", "name": "c"}], "control")
    text = "\n".join(map(json.dumps, lines)) + "\n"
    data = instruction_files.write_set(tmp_path / "mine", {"mine.jsonl": text}, [{"layout": "messages"}])
    base = tiny_decoders.tiny_base(tmp_path / "base")
    rules = test_validate_instructions.config(batch_rows=32)
    config = test_encode_instructions.config(batch_rows=32, weights={"mine": 1.5})

    def stages(out: Path, spread: Spread) -> None:
        validate_instructions(rules, COMPUTE, data, out / "validated", spread)
        encode_instructions(config, COMPUTE, out / "validated", base, out / "encoded", spread)

    assert both_ways(tmp_path, on_ray, stages) == 9


@pytest.mark.slow
def test_an_error_of_a_batch_is_raised_as_it_is(on_ray: Spread) -> None:
    with pytest.raises(DataError, match="no text in data/mine/x.csv:3"):
        list(on_ray(_fail, [1, 2, 3]))
    assert list(on_ray(_fail, [])) == []


def _fail(batch: int) -> int:
    if batch == 2:
        raise DataError("no text in data/mine/x.csv:3")
    return batch


@pytest.mark.slow
def test_200_000_rows_come_to_the_same_files(on_ray: Spread, tmp_path: Path) -> None:
    assert reviews_both_ways(tmp_path, on_ray, 200_000, 4096) == 11
