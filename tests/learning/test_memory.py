"""The lecture's exercises against published numbers and against models that transformers counts itself."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ajuste.learning.memory_plan import SHAPES, Shape, attention_adapter, gpt_parameters, needs, nf4_bits


def test_the_count_is_what_transformers_builds():
    shape = Shape(layers=3, width=48, vocabulary=101, positions=32)
    config = GPT2Config(n_layer=3, n_embd=48, n_head=4, vocab_size=101, n_positions=32)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    assert gpt_parameters(shape) == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "published"),
    [("gpt-2", 124_439_808), ("gpt-2-medium", 354_823_168), ("gpt-2-large", 774_030_080), ("gpt-2-xl", 1_557_611_200)],
)
def test_gpt2_has_its_published_size(name, published):
    assert gpt_parameters(SHAPES[name]) == published


@pytest.mark.parametrize(("r", "published"), [(1, 4.7e6), (2, 9.4e6), (4, 18.9e6), (8, 37.7e6)])
def test_the_adapters_of_the_lora_paper(r, published):
    """LoRA, Table 4 and 6: W_q and W_v of GPT-3."""
    assert attention_adapter(SHAPES["gpt-3"], r, matrices=2) == pytest.approx(published, rel=0.01)


def test_gpt3_by_method():
    """ZeRO's 16 bytes: 2.8 TB; LoRA's 350 GB at 2 bytes; QLoRA's 0.373 bits saved by double quantisation."""
    full, _, lora, qlora = needs(175e9, attention_adapter(SHAPES["gpt-3"], 4, 2))
    assert full.total == pytest.approx(2.80e12)
    assert lora.total == pytest.approx(350e9 + 0.30e9, rel=1e-4)
    assert nf4_bits() == pytest.approx(4.127, abs=5e-4)
    assert nf4_bits(double_quantisation=False) - nf4_bits() == pytest.approx(0.373, abs=5e-4)
    assert qlora.total == pytest.approx(90.3e9 + 0.30e9, rel=1e-3)


def test_bytes_by_method_written_out():
    """P = 1000, a = 10: weights, gradients and optimiser of each."""
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    assert nf4_bits() == bits and nf4_bits(False) == 4.5
    rows = [(n.method, n.trainable, n.weights, n.gradients, n.optimizer) for n in needs(1000, 10)]
    assert rows == [
        ("full, mixed", 1000, 2000, 2000, 12_000), ("full, 16 bits", 1000, 2000, 2000, 4000),
        ("LoRA", 10, 2020, 20, 120), ("QLoRA (NF4)", 10, bits / 8 * 1000 + 20, 20, 120),
    ]  # fmt: skip
    assert [n.total for n in needs(1000, 10)] == [16_000, 8000, 2160, bits / 8 * 1000 + 160]
