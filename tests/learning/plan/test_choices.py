"""What a plan says to people: which GPUs fit, copies on disk, cuts of the state, sizes and sentences in full.

The shape is test_parts.py's. LoRA on o_proj and up_proj, torch's attention, 9 tokens a row, 16 bits:

    lora     always 2 x 10,007 + 16 x 660 = 30,574    a row 3 (9 x 656 + 180) + 252 + 1,296 = 19,800
    qlora    13,687.15 + 10,560 = 24,247.15           a row 3 (9 x 812 + 180) + 252 + 1,296 = 24,012
    qlora8   15,751 + 10,560 = 26,311                 a row 24,012
    full     120,084; in a step 9,072 beside rows     a row 3 (9 x 718 + 180) + 630 + 1,296 = 21,852; update 40,392

and from the second GPU on, 4 x 4,263 / 3 = 5,684 bytes of a gathered layer.
"""

import pytest

from ajuste.learning.plan import cost, disk, exercise, fitting, sharding, training
from ajuste.learning.plan.activations import Batch
from ajuste.learning.plan.parts import Part, Plan, size
from tests.learning.plan.test_parts import OU, SMALL


def test_bytes_of_one_of_several_gpus() -> None:
    parts = (Part("w", 30, ""), Part("activations", 7, "", "step"), Part("logits", 5, "", "step"),
             Part("a layer's gradients", 3, "", "step"), Part("copies", 12, "", "step"))  # fmt: skip
    plan = Plan("one", parts)
    assert fitting.of_a_gpu(SMALL, plan, 1) == 57
    assert fitting.of_a_gpu(SMALL, plan, 2) == 15 + 15 + 6 + 5684
    assert fitting.of_a_gpu(SMALL, plan, 3) == 10 + 15 + 4 + 5684


def test_each_method_on_the_fewest_gpus_with_the_most_rows() -> None:
    """109,774 = 30,574 + 4 x 19,800 is what LoRA takes with all four rows: it fits to the byte."""
    found = fitting.options(SMALL, 2, OU, 4, 9, cost.Gpu(109774, 1.0), 3)
    assert found == [
        ("full", 1, 2, 92114.0, True, 60042.0),  # 60,042 + 21,852 + 4,536 + 5,684; two rows take 113,966
        ("lora", 4, 1, 109774.0, True, 43988.0),  # 4 x 10,007 + 6 x 660
        ("qlora", 2, 1, 72271.150146484375, True, pytest.approx(48386.8)),
        ("qlora8", 2, 1, 74335.0, True, pytest.approx(48386.8)),
    ]
    assert fitting.cheapest(found) == found[1]
    none = fitting.options(SMALL, 2, OU, 4, 9, cost.Gpu(24000, 1.0), 3)
    assert [one[:3] + one[4:5] for one in none] == [
        ("full", 1, 3, False), ("lora", 1, 3, False), ("qlora", 1, 3, False), ("qlora8", 1, 3, False)
    ]  # fmt: skip
    assert [one.bytes for one in none] == pytest.approx([70588, 35675.333333, 37778.383382, 38466.333333])


def test_the_cheapest_by_operations_then_gpus_then_rows() -> None:
    Option = fitting.Option
    worse = [Option("a", 9, 1, 1.0, True, 8.0), Option("b", 9, 3, 1.0, True, 7.0), Option("c", 2, 2, 1.0, True, 7.0),
             Option("d", 9, 1, 1.0, False, 1.0)]  # fmt: skip
    best = Option("e", 4, 2, 1.0, True, 7.0)
    assert fitting.cheapest([*worse, best]) == best == fitting.cheapest([best, *worse])
    assert fitting.cheapest(worse[3:]) is None


def test_advice_in_full() -> None:
    """33,127.5 = 30,574 / 4 + 19,800 + 5,684: four GPUs are enough for LoRA, to the byte."""
    assert fitting.advice(SMALL, 2, OU, 9, cost.Gpu(33127.5, 1.0), 3) == (
        "take more GPUs (full fits 24 of them; lora fits 4 of them; qlora fits 8 of them; qlora8 fits 8 of them), "
        "or a smaller model"
    )
    assert fitting.advice(SMALL, 2, OU, 9, cost.Gpu(33127.5, 1.0), 9).count("fits 10 of them") == 3
    assert fitting.advice(SMALL, 2, OU, 9000, cost.Gpu(24000, 1.0), 3) == (
        "one row of 9,000 tokens alone takes more than 24,000 B: take shorter rows or a smaller model"
    )


def test_rows_halved_and_batches_of_them() -> None:
    assert fitting.halves(13) == [13, 6, 3, 1] and fitting.halves(1) == [1]
    assert fitting.batch_of(3, 5) == Batch((5, 5, 5), prefix=0, trained=15)


def test_copies_on_disk_in_full() -> None:
    assert [tuple(part) for part in disk.disk(101, 7, False)] == [
        ("base", 202, "2 P, artifacts/base", "always"),
        ("adapter", 28, "4 a, artifacts/adapters", "always"),
        ("merged", 404, "4 P, artifacts/merged", "always"),
        ("checkpoints, while it trains", 168, "2 x 12 bytes of each weight that learns", "always"),
        ("DVC's cache", 0, "0: linked", "always"),
        ("registry", 432, "1 x (adapter + merged)", "always"),
    ]
    assert [tuple(part) for part in disk.disk(101, 103, True, base=4, merged=2, linked=False, versions=3)] == [
        ("base", 404, "4 P, artifacts/base", "always"),
        ("whole model", 404, "4 P", "always"),
        ("merged", 202, "2 P, artifacts/merged", "always"),
        ("checkpoints, while it trains", 2472, "2 x 12 bytes of each weight that learns", "always"),
        ("DVC's cache", 1010, "base, adapter and merged again", "always"),
        ("registry", 1818, "3 x (adapter + merged)", "always"),
    ]


def test_the_state_cut_over_gpus() -> None:
    assert sharding.zero(7, 7) == {"none": 112, "1": 40, "2": 28, "3": 16}
    assert sharding.zero(3, 1) == {"none": 48, "1": 48, "2": 48, "3": 48}
    with pytest.raises(ValueError) as said:
        sharding.zero(3, 0)
    assert str(said.value) == "0 GPUs hold nothing: name one or more"


def test_the_exercise_in_full() -> None:
    assert [(part.name, part.formula) for part in exercise.rows(1000.0, 10.0)] == [
        ("full, mixed", "16 P = 2 weights + 2 gradients + 4 master + 4 m + 4 v (ZeRO)"),
        ("full, 16 bits", "8 P = 2 weights + 2 gradients + 2 m + 2 v"),
        ("LoRA", "2 P + 16 a"),
        ("QLoRA (NF4)", "4.127 bits x P / 8 + 16 a"),
    ]
    assert exercise.paper(175e9) == (
        "The LoRA paper printed 1.2 TB (full) and 350 GB (LoRA): 6.9 bytes a parameter and 2. Mixed precision takes "
        "16, since it keeps a float32 master copy and float32 moments (12 bytes); 16 bits throughout take 6 without "
        "gradients (1.05 TB) and 8 with them (1.40 TB). The paper does not say what its 1.2 TB hold."
    )
    # the paper's own size, to the whole parameter
    assert [bool(exercise.paper(P)) for P in (1.7e11, 1.7e11 + 1, 1.8e11 - 1, 1.8e11)] == [False, True, True, False]


def test_tokens_a_second_of_one_gpu_by_lora() -> None:
    assert cost.rate(10, 2, False, cost.Gpu(1e9, 650.0)) == pytest.approx(5.0)  # 650 x 0.4 / (40 + 12)


def test_sizes_as_people_read_them() -> None:
    assert [size(count) for count in (999_999, 1e6, 1e9, 1e12, 2.5e15)] == [
        "999,999 B", "1.00 MB", "1.00 GB", "1.00 TB", "2,500.00 TB"
    ]  # fmt: skip


def test_a_name_that_no_matrix_has() -> None:
    with pytest.raises(ValueError) as said:
        SMALL.a(2, ("q_proj", "c_fc"))
    assert str(said.value) == (
        "small has no matrix `c_fc`: its layers have down_proj, gate_proj, o_proj, q_proj, up_proj"
    )
    assert (SMALL.a(2), SMALL.a(3, OU), SMALL.M) == (1428, 990, 4263)
    assert training.METHODS == ("full", "lora", "qlora", "qlora8")
