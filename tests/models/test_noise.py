"""Nothing random stays in training mode where two passes are compared: dropout as a layer, as a number, and routers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ajuste.models import classifier, reward
from ajuste.models.features import FeatureReader
from ajuste.models.layers import set_dropout, without_noise
from ajuste.models.one_base import OneBase, Settings
from tests.made.architectures import make, rows_of, write

NOISY = ("opt", "gpt2", "phimoe", "bert", "roberta", "deberta-v2", "distilbert")
ROW = torch.tensor([[7 * i % 97 for i in range(60)]])


def passes(model):
    """Two in training mode, one in evaluation."""
    with torch.no_grad():
        return [model.train(mode)(input_ids=ROW)[0] for mode in (True, True, False)]


@pytest.mark.parametrize("name", NOISY)
def test_two_passes_in_training_mode_and_one_in_evaluation_are_equal(name):
    before = passes(make(name))
    assert (before[0] - before[1]).abs().max() > 0.1  # the control
    first, second, evaluation = passes(without_noise(make(name)))
    assert torch.equal(first, second) and torch.allclose(first, evaluation, atol=1e-5)


def test_dropout_of_a_stage_reaches_what_is_kept_as_a_number():
    first, second, _ = passes(set_dropout(make("opt"), 0.0))
    assert torch.equal(first, second)
    layer = set_dropout(make("modernbert"), 0.25).layers[0]
    assert layer.attn.attention_dropout == 0.25


def test_draws_that_cannot_be_switched_off_are_refused():
    model = make("llama")
    inner = model.model.layers[0].mlp
    own = inner.forward
    inner.forward = lambda x: F.dropout(own(x), 0.5, inner.training)
    with pytest.raises(ValueError, match="LlamaForCausalLM draws random numbers in training"):
        without_noise(model)


def test_the_check_draws_nothing_and_leaves_the_mode():
    model = make("gpt2").train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert without_noise(model).training
    assert torch.equal(torch.rand(3), expected)


def test_reward_training_and_the_one_base_are_without_noise(tmp_path):
    base = write("opt", tmp_path / "base")
    model = reward.build(base, reward.Settings(r=2)).train()
    batch = reward.collate(model, rows_of())
    assert torch.equal(reward.rewards(model, batch), reward.rewards(model, batch))
    one = OneBase.build(base, None, Settings(r=2), torch.float32).train()
    episodes = [[3, 4, 5], [3, 6]], torch.tensor([[7, 8], [9, 10]]), torch.ones(2, 2, dtype=torch.bool)
    assert torch.equal(one.policy_and_values(*episodes, 1.0)[0], one.policy_and_values(*episodes, 1.0)[0])


# --- what else makes a padded batch of a classifier another one -------------------------------------------------------


@pytest.mark.parametrize(("pad", "end", "expected"), [(5, 2, 5), (None, 2, 2), (None, [7, 8], 7), (0, None, 0)])
def test_rows_are_filled_with_the_own_padding_token_or_the_first_end(pad, end, expected):
    config = make("gpt2").config
    config.pad_token_id, config.eos_token_id = pad, end
    assert classifier.padding_id(config) == expected


def test_a_base_without_padding_and_end_token_is_refused():
    config = make("gpt2").config
    config.pad_token_id = config.eos_token_id = None
    with pytest.raises(ValueError, match="no pad_token_id and no eos_token_id"):
        classifier.padding_id(config)


def test_features_are_of_the_token_that_the_head_reads_where_rows_end_with_the_padding_token(tmp_path):
    """As where a tokenizer ends each row with the end token and the base has no other for padding."""
    torch.manual_seed(0)
    model = classifier.build(write("gpt2", tmp_path / "base"), ["no", "yes"]).eval()
    rows = [[*row, model.config.pad_token_id] for row in rows_of()]
    features = classifier.logits_of(FeatureReader(model), rows)
    with torch.no_grad():
        assert torch.allclose(model.score(features), classifier.logits_of(model, rows), atol=1e-5)


def test_an_architecture_without_the_head_is_refused_by_name(tmp_path):
    base = write("cohere", tmp_path / "base")
    with pytest.raises(ValueError, match="no SequenceClassification model of architecture `cohere`"):
        classifier.build(base, ["no", "yes"])
    with pytest.raises(ValueError, match="no SequenceClassification model of architecture `cohere`"):
        reward.build(base, reward.Settings())
    assert isinstance(classifier.build(base, ["no", "yes"], pooling="mean").head, nn.Linear)
