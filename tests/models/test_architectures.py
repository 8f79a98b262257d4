"""Every use of every architecture of the zoo agrees with transformers' plain forward, or is refused in one line; and
docs/architectures.md says which. Cells with a peculiarity each are fast, all others slow."""

import pytest
import torch

from tests.made import table
from tests.made.architectures import DECODERS, SHAPES, WITHOUT, config_of, make, rows_of
from tests.made.uses import measure, uses_of

FAST = {
    ("gpt-oss", "SFT"), ("qwen3.5", "SFT"), ("phi", "PPO"), ("bamba", "rollout"), ("jamba", "merge"), ("opt", "reward"),
    ("lfm2", "reward"), ("roberta", "classify"),
}  # fmt: skip
CELLS = [(name, use) for name in SHAPES for use in uses_of(name)]


@pytest.mark.parametrize(
    ("name", "use"), [pytest.param(*cell, marks=() if cell in FAST else pytest.mark.slow) for cell in CELLS]
)
def test_a_use_is_right_or_refused_as_the_page_says(name, use):
    cell = measure(name, use)
    assert cell.verdict != "WRONG", f"{cell.difference:.2g} {cell.said}"
    assert table.stated()[name, use] == cell.verdict


def test_the_page_has_every_cell_and_no_other():
    assert set(table.stated()) == set(CELLS)
    assert set(table.stated().values()) == {"exact", "plain", "refused"}


def test_no_fast_cell_was_renamed():
    assert set(CELLS) >= FAST


@pytest.mark.parametrize("name", WITHOUT)
def test_the_peculiarity_is_alive(name):
    """The same weights without it answer in another way."""
    with torch.no_grad():
        model, ids = make(name), torch.tensor([rows_of()[0]])
        expected = model(input_ids=ids, use_cache=False)[0]
        other = make(name, changed=WITHOUT[name])
        assert (expected - other(input_ids=ids, use_cache=False)[0]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["gpt-oss", "phi", "gpt-j", "phimoe", "qwen2", "starcoder2"])
def test_sinks_and_biases_are_not_zero(name):
    model = make(name)
    found = [p for part, p in model.named_parameters() if part.endswith(("bias", "sinks"))]
    assert found and all((p != 0).all() for p in found if p.ndim == 1)


@pytest.mark.parametrize("name", DECODERS)
def test_heads_are_tied_as_the_configuration_says(name):
    model = make(name)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == config_of(name).tie_word_embeddings
