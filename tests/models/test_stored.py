"""A model kept in the dtype of its file computes the float32 model's numbers; tensors come one at a time."""

import pytest
import torch
from safetensors.torch import save_file

from ajuste.models import decoder
from ajuste.models.files import stored
from ajuste.models.files.tensors import Tensors, size_in, stored_dtype
from tests.made import tiny_decoders as tiny

torch.set_num_threads(1)
IDS = torch.tensor([[5, 17, 3, 60, 2, 9]])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_it_computes_what_the_float32_model_computes(kept, adapted, base, tmp_path):
    low, _ = decoder.load_base(base, kept)
    whole = {name: weight.float() for name, weight in low.state_dict().items()}
    high, _ = decoder.load_base(base)
    high.load_state_dict(whole)
    if adapted:
        folder = tiny.tiny_adapter(base, tmp_path / "adapter")
        low, high = (decoder.put_on(model, folder) for model in (low, high))
        A = {name: weight for name, weight in high.state_dict().items() if "lora_" in name}
        assert A and all(torch.equal(weight, low.state_dict()[name]) for name, weight in A.items()), "as it was saved"
    before = {name: weight.dtype for name, weight in low.state_dict().items()}
    model = stored.float32(low)
    for context in (torch.inference_mode(), torch.enable_grad()):
        with context:
            assert torch.equal(model(input_ids=IDS).logits, high(input_ids=IDS).logits)
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == before, "nothing stays raised"
    assert (kept in before.values()) and model(input_ids=IDS).logits.dtype == torch.float32


def test_what_others_read_is_raised_as_a_whole(base, tmp_path):
    folder = tiny.tiny_adapter(base, tmp_path / "adapter", "dora")
    model = stored.float32(decoder.put_on(decoder.load_base(base, torch.bfloat16)[0], folder))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    own = torch.nn.Module()
    own.experts = torch.nn.Parameter(torch.ones(2, 3, 4, dtype=torch.bfloat16))
    assert stored.float32(own).experts.dtype == torch.float32


def test_tensors_one_at_a_time(tmp_path):
    made = {"b": torch.arange(6.0).view(2, 3).bfloat16(), "a": torch.ones(4), "n": torch.tensor([1, 2])}
    save_file(made, tmp_path / "x.safetensors")
    found = Tensors(tmp_path / "x.safetensors")
    assert set(found) == set(made) and len(found) == 3 and "a" in found and "c" not in found
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in made.items())
    with pytest.raises(KeyError):
        found["c"]
    assert stored_dtype(tmp_path / "x.safetensors") == torch.bfloat16, "most numbers are"
    assert size_in(tmp_path / "x.safetensors", torch.float32) == (6 + 4) * 4 + 2 * 8
    save_file({"n": torch.tensor([1])}, tmp_path / "y.safetensors")
    assert stored_dtype(tmp_path / "y.safetensors") == torch.float32
