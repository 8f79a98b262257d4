"""Rounding of what is written for people: six digits, no other type touched, the noise of a proof as a bound."""

import json
import math
import os
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajuste.core.figures import bound, rounded, write_json, write_lines
from tests.made.digits import unrounded


def numbers(count: int) -> list[float]:
    """Floats of every size and sign, from one seed."""
    generator = random.Random(0)
    return [generator.choice((-1, 1)) * generator.random() * 10 ** generator.randint(-300, 300) for _ in range(count)]


def test_a_rounded_float_is_near_short_and_stays() -> None:
    for value in numbers(5000):
        found = rounded(value)
        assert abs(found - value) <= 5.0000001e-6 * abs(value)
        assert len(Decimal(repr(found)).normalize().as_tuple().digits) <= 6
        assert rounded(found) == found and rounded(-value) == -found


def test_order_is_kept_and_noise_vanishes() -> None:
    values = sorted(numbers(2000))
    found = [rounded(value) for value in values]
    assert found == sorted(found)
    turned = sum(rounded(value) != rounded(value * (1 + 3e-16)) for value in values)
    assert turned == 0, "two values that differ in the last bit alone lie on both sides of a boundary: one in 1e9"


def test_only_floats_change_and_the_tree_stays() -> None:
    tree = {
        "int": 123456789, "big": 10**20, "true": True, "text": "0.123456789", "none": None, "float": 0.123456789,
        "list": [1.23456789, [2, 2.00000001]], "tuple": (0.1 + 0.2,), "deep": {"x": {"y": -1e-9 / 3}},
    }  # fmt: skip
    assert rounded(tree) == {
        "int": 123456789, "big": 10**20, "true": True, "text": "0.123456789", "none": None, "float": 0.123457,
        "list": [1.23457, [2, 2.0]], "tuple": [0.3], "deep": {"x": {"y": -3.33333e-10}},
    }  # fmt: skip
    assert rounded(tree)["true"] is True and isinstance(rounded(7), int)
    assert math.isnan(rounded(math.nan)) and rounded(math.inf) == math.inf and rounded(-math.inf) == -math.inf
    assert math.copysign(1, rounded(-0.0)) == -1


@pytest.mark.parametrize(
    ("noise", "limit", "expected"),
    [
        (2.38e-6, 1e-4, 3e-6), (9.01e-6, 1e-4, 1e-5), (3e-6, 1e-4, 3e-6), (1e-6, 1.0, 1e-6), (0.0, 1.0, 0.0),
        (1.2e-4, 1.5e-4, 1.5e-4),  # rounded up it would lie above the limit that it has kept
        (0.23, 0.1, 0.3),  # a limit that was not kept hides nothing
        (4.4e-16, math.inf, 5e-16), (math.inf, 1.0, math.inf),
    ],
)  # fmt: skip
def test_the_bound_of_noise(noise: float, limit: float, expected: float) -> None:
    assert bound(noise, limit) == expected
    assert noise <= bound(noise, limit)


def test_a_bound_is_never_below_what_it_bounds() -> None:
    for value in map(abs, numbers(2000)):
        assert value * (1 - 1e-8) <= bound(value, math.inf) <= 2 * value * (1 + 1e-8)
    assert math.isnan(bound(math.nan, 1.0))


def test_files_are_rounded_and_the_walk_over_outs_sees_what_is_not(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1 / 3, "a": [2 / 3]}, sort_keys=True)
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  0.666667\n ],\n "b": 0.333333\n}\n'
    write_lines(tmp_path / "b.jsonl", [{"loss": 1 / 3}, {"text": "é"}])
    assert (tmp_path / "b.jsonl").read_text(encoding="utf-8") == '{"loss": 0.333333}\n{"text": "é"}\n'
    assert unrounded(tmp_path) == []
    (tmp_path / "c.jsonl").write_text(json.dumps({"x": {"y": [1, 1 / 3]}}) + "\n")
    (tmp_path / "d.csv").write_text("step,loss,name\n1,0.123456789,a\n2,nan,b\n")
    for name, column in (("e", pa.array([[1 / 3], [0.5]], pa.list_(pa.float32()))), ("f", pa.array([0.1 + 0.2]))):
        pq.write_table(pa.table({"p": column}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"p": pa.array([[0.333333]], pa.list_(pa.float32()))}), tmp_path / "g.parquet")
    (tmp_path / "ajuste.json").write_text(json.dumps({"bias": 1 / 3, "normalisation": {"gain": 1 / 3}, "share": 1 / 3}))
    found = unrounded(tmp_path)
    assert [line.split(" =")[0] for line in found] == [
        "ajuste.json: share", "c.jsonl: x.y[1]", "d.csv: loss", "e.parquet: p", "f.parquet: p"
    ]  # fmt: skip


KERNELS = """
import json
import numpy as np
from ajuste.core.figures import rounded
from ajuste.learning.statistics.metrics import estimate, resamples
sums = np.random.default_rng(0).normal(2.0, 1.0, 1066)
found = estimate(sums, np.ones(1066), resamples(1066, 200, 0))
print(json.dumps([found, rounded(found)]))
"""


def test_an_interval_has_one_value_on_processors_that_sum_in_another_order() -> None:
    """NumPy's matrix product takes a kernel by the processor; OPENBLAS_CORETYPE says which. Each sums in its order."""
    exact, written = [], []
    for core in ("Prescott", "Haswell"):
        done = subprocess.run([sys.executable, "-c", KERNELS], env={**os.environ, "OPENBLAS_CORETYPE": core},
                              capture_output=True, text=True, check=True)  # fmt: skip
        one, two = json.loads(done.stdout)
        exact.append(one)
        written.append(two)
    assert exact[0] != exact[1], "the kernels sum alike: this test could not fail"
    assert written[0] == written[1]
