"""What a plan counts against what autograd really keeps of a forward pass of small models."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ajuste.learning.layers import fused, ragged
from ajuste.learning.plan.activations import Batch, Way, kept, wide
from ajuste.learning.plan.architecture import Architecture, read
from ajuste.models import methods

LENGTHS = (40, 33, 64)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=48, n_layer=3, n_head=4, n_positions=64, resid_pdrop=0.0,
                                      embd_pdrop=0.0, attn_pdrop=0.0))  # fmt: skip


def architecture_of(model) -> Architecture:
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return read(shapes, model.config.to_dict(), "a small one")


def really(model, dtype: torch.dtype, autocast: bool) -> float:
    """Bytes of the storages that autograd saves, each once, without those of the weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    rows = [(list(range(length)), list(range(length))) for length in LENGTHS]
    batch = ragged.collate([([i % 64 for i in ids], [i % 64 for i in labels]) for ids, labels in rows])
    batch["labels"][:] = -100
    batch["labels"][0, 1] = 1  # one trained token: nearly no logits
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ragged.response_loss(model, batch)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(
    ("method", "dtype"), [("full", "float32"), ("full", "bfloat16"), ("lora", "float32"), ("lora", "bfloat16")]
)
def test_a_plan_counts_what_autograd_keeps(make, method: str, dtype: str) -> None:
    torch.manual_seed(0)
    full, half = method == "full", dtype == "bfloat16"
    model = make().to(torch.float32 if full else getattr(torch, dtype))
    sizes = architecture_of(model)
    model = ragged.attach(methods.attach(model, methods.Settings(method, r=4, alpha=8)))
    if not full:
        fused.fuse(model)
    way = Way(2 if half else 4, full=full, r=4)
    planned, formula = kept(sizes, Batch(LENGTHS), way)
    if full and half:
        planned += 2 * (sizes.M + sizes.V * sizes.d)  # the matrices' bfloat16 copies, a part of their own
    found = really(model, getattr(torch, dtype), full and half)
    assert planned == pytest.approx(found, rel=0.05), formula


def test_the_formula_in_numbers() -> None:
    """A layer of the small Llama, by hand: LoRA on all matrices in float32, r = 4."""
    sizes = architecture_of(llama())
    assert (sizes.L, sizes.d, sizes.H, sizes.G, sizes.h, sizes.f, sizes.V) == (3, 48, 4, 2, 12, 80, 64)
    n = 2 * 8 * 48 + 4 * (2 * 48 + 2 * 24) + 4 * 4 * 80 + 4 * 4 * 7
    rows = 4 * 4 * sum(length * wide(length) for length in LENGTHS)
    assert kept(sizes, Batch(LENGTHS), Way(4, r=4))[0] == 3 * (137 * n + rows) + 137 * 48 * 4
    assert [wide(length) for length in (1, 32, 33)] == [32, 32, 64]


def test_a_prefix_is_read_once_and_attention_elsewhere_keeps_no_square() -> None:
    sizes = architecture_of(llama())
    apart, shared = Batch((50, 50)), Batch((10, 10), prefix=40)
    assert (apart.tokens, shared.tokens, shared.longest) == (100, 60, 50)
    assert kept(sizes, shared, Way(4))[0] < kept(sizes, apart, Way(4))[0]
    square = kept(sizes, Batch((512,)), Way(2))[0] - kept(sizes, Batch((512,)), Way(2, sdpa=True))[0]
    assert square == 3 * (4 * 512 * 512 * 2 - 4 * 512 * 4)
    assert kept(sizes, Batch((513,)), Way(2)) == kept(sizes, Batch((513,)), Way(2, sdpa=True))
