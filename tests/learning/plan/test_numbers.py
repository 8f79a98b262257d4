"""Every published count and size that a plan must give: LoRA, GPT-2, GPT-3, QLoRA, ZeRO."""

import pytest

from ajuste.learning.memory_plan import SHAPES, nf4_bits
from ajuste.learning.plan import cost, disk, exercise, fitting, sharding, training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.architecture import Matrix, gpt
from ajuste.learning.plan.parts import ALWAYS, Part, Plan, size
from ajuste.models import shapes

QV, FOUR = ("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def gpt3():
    return shapes.of("gpt3-175b")


def test_lora_of_one_matrix():
    one = gpt(SHAPES["gpt-3"], "one")._replace(matrices=(Matrix("W", 12288, 12288, 1),))
    assert one.a(8) == 196_608 and one.M == 150_994_944
    assert one.a(8) / one.M == pytest.approx(0.001302, abs=5e-7)


@pytest.mark.parametrize(("r", "count"), [(1, 4_718_592), (2, 9_437_184), (4, 18_874_368), (8, 37_748_736)])
def test_lora_of_gpt3_on_queries_and_values(gpt3, r, count):
    assert gpt3.a(r, QV) == count


def test_qlora_of_gpt3_on_the_four_attention_matrices(gpt3):
    assert gpt3.a(8, FOUR) == 75_497_472


@pytest.mark.parametrize(
    ("layers", "width", "r", "count"),
    [(12, 768, 8, 294_912), (24, 1024, 4, 393_216), (36, 1280, 4, 737_280), (24, 2048, 8, 1_572_864),
     (32, 4096, 8, 4_194_304), (40, 5120, 8, 6_553_600)],
)  # fmt: skip
def test_lora_of_other_models_on_queries_and_values(gpt3, layers, width, r, count):
    """RoBERTa-base, GPT-2 medium and large, Phi-1.5, Llama-2 7B and 13B: what their projects print."""
    square = tuple(Matrix(name, width, width, layers) for name in QV)
    assert gpt3._replace(matrices=square).a(r) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt-2", 124_439_808), ("gpt-2-medium", 354_823_168), ("gpt-2-large", 774_030_080), ("gpt-2-xl", 1_557_611_200),
     ("gpt3-175b", 174_604_259_328)],
)  # fmt: skip
def test_counts_of_gpt(name, count):
    found = shapes.of(name)
    assert found.P == count
    # all weights but the matrices: embeddings, biases and norms
    d, L = found.d, found.L
    positions = 2048 if name == "gpt3-175b" else 1024
    assert found.P - found.M == (50257 + positions) * d + L * 13 * d + 2 * d


def test_the_published_count_and_the_sizes_are_told_apart(gpt3):
    assert shapes.PUBLISHED["gpt3-175b"] == 175e9 != gpt3.P


def test_gpt3_by_method_before_activations(gpt3):
    found = {row.name: row.bytes for row in exercise.rows(175e9, gpt3.a(4, QV))}
    assert found["full, mixed"] == pytest.approx(2.80e12) and found["full, mixed"] / 2**30 == pytest.approx(2608, abs=1)
    assert found["full, 16 bits"] == pytest.approx(1.40e12)
    assert found["LoRA"] == pytest.approx(350e9 + 0.30e9, rel=1e-4)
    assert nf4_bits() == pytest.approx(4.127, abs=5e-4) and nf4_bits(False) == 4.5
    assert nf4_bits() / 8 * 175e9 == pytest.approx(90.3e9, abs=0.05e9)
    assert nf4_bits() / 8 * 175e9 / 2**30 == pytest.approx(84.1, abs=0.05)
    assert nf4_bits(False) / 8 * 175e9 == pytest.approx(98.4e9, abs=0.05e9)
    assert found["QLoRA (NF4)"] == pytest.approx(90.3e9 + 0.30e9, abs=0.05e9)


def test_both_conventions_are_told_and_why():
    said = exercise.paper(175e9)
    assert "1.2 TB" in said and "6.9 bytes" in said and "master copy" in said and "1.05 TB" in said
    assert exercise.paper(7e9) == ""


def test_zero_of_its_figure():
    found = sharding.zero(7.5e9, 64)
    assert [round(value / 1e9, 1) for value in found.values()] == [120.0, 31.4, 16.6, 1.9]
    with pytest.raises(ValueError, match="0 GPUs"):
        sharding.zero(1.0, 0)


def test_parts_of_a_plan_add_up():
    plan = Plan("one", (Part("w", 10, "", ALWAYS), Part("a", 5, "", "step"), Part("l", 2, "", "step"),
                        Part("g", 6, "", "update")))  # fmt: skip
    assert plan.phases == {"step": 7, "update": 6} and plan.peak == "step" and plan.total == 17
    assert plan.without("step").total == 16 and plan.of([ALWAYS]) == 10
    assert [size(x) for x in (12, 3.5e6, 2.8e12)] == ["12 B", "3.50 MB", "2.80 TB"]


def test_what_a_method_takes(gpt3):
    """Weights, gradients, optimiser and master copy of each, by hand."""
    batch, P = Batch((8,), trained=8), gpt3.P
    full = training.supervised(gpt3, training.way("full", 2, 4, QV), batch, "full")
    named = {(part.name, part.when): part.bytes for part in full.parts}
    assert (named["weights", ALWAYS], named["Adam", ALWAYS], named["master copy", ALWAYS]) == (4 * P, 8 * P, 0)
    assert named["gradients", "update"] == 4 * P
    lora = training.supervised(gpt3, training.way("lora", 2, 4, QV), batch, "lora")
    a = 18_874_368
    assert lora.of([ALWAYS]) == 2 * P + 16 * a
    qlora = training.supervised(gpt3, training.way("qlora", 2, 4, QV), batch, "qlora")
    assert qlora.of([ALWAYS]) == pytest.approx(nf4_bits() / 8 * gpt3.M + 2 * (P - gpt3.M) + 16 * a)
    with pytest.raises(ValueError, match="prefix"):
        training.way("prefix", 2, 4, QV)
    with pytest.raises(ValueError, match="nowhere"):
        gpt3.a(4, ("nowhere",))


def test_four_models_on_one_base(gpt3):
    how = training.Sampling(16, 100, 24)
    way, batch = training.way("lora", 2, 8, QV), Batch((24,) * 16, 100, 24 * 16)
    plan = training.samples(gpt3, way, batch, how, "trunk", reward=True)
    named = {part.name: part for part in plan.parts}
    a, d = gpt3.a(8, QV), gpt3.d
    assert named["reference"].bytes == 0 and "a copy of its own" in named["reference"].formula
    assert (named["reward model"].bytes, named["value"].bytes) == (4 * a + 4 * d, 4 * d)
    assert named["key-value cache"].bytes == 2 * 96 * 16 * 96 * 128 * 124 * 4
    own = training.samples(gpt3, way, batch, how, "adapter", reward=True)
    extra = {part.name: part.bytes for part in own.parts}
    assert extra["activations"] == 2 * named["activations"].bytes and extra["Adam"] == 16 * a
    assert extra["value"] == 4 * a + 4 * d


def test_the_cheapest_that_fits(gpt3):
    """One H200: 175B in 4 bits alone; a GPT-2 any way, and LoRA needs the fewest operations."""
    h200 = cost.GPUS["h200"]
    found = fitting.options(gpt3, 8, FOUR, 8, 512, h200, 1)
    assert {one.method for one in found if one.fits} == {"qlora"} and fitting.cheapest(found).method == "qlora"
    small = fitting.options(shapes.of("gpt-2"), 8, FOUR, 8, 512, h200, 1)
    assert all(one.fits for one in small) and fitting.cheapest(small).method == "lora"
    l4, h100 = cost.GPUS["l4"], cost.GPUS["h100"]
    assert fitting.cheapest(fitting.options(gpt3, 8, FOUR, 8, 512, h100, 1)) is None
    said = fitting.advice(gpt3, 8, FOUR, 512, h100, 1)
    assert "qlora fits" in said and "full fits" in said
    assert "one row of 512 tokens alone" in fitting.advice(gpt3, 8, FOUR, 512, l4, 1)


def test_time_and_cost():
    assert cost.operations(10, 2, True) == 60 and cost.operations(10, 2, False) == 52
    gpu = cost.Gpu(1e9, 600.0)
    assert cost.rate(10, 2, True, gpu, gpus=2, share=0.5) == 10.0
    assert cost.money(7200, 4, 2.5) == 20.0


def test_disk_counts_every_copy():
    kept = {part.name: part.bytes for part in disk.disk(100, 10, False, versions=2)}
    assert kept == {"base": 200, "adapter": 40, "merged": 400, "checkpoints, while it trains": 240, "DVC's cache": 0,
                    "registry": 880}  # fmt: skip
    again = {part.name: part.bytes for part in disk.disk(100, 100, True, linked=False)}
    assert again["whole model"] == 400 and again["DVC's cache"] == 1000
