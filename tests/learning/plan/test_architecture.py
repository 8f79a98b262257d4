"""Sizes read from models of transformers on the meta device, against the weights that those models really have."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3MoeConfig,
)

from ajuste.learning.memory_plan import Shape
from ajuste.learning.plan.architecture import Architecture, Matrix, gpt, read

SIZES = {"vocab_size": 61, "hidden_size": 40, "num_hidden_layers": 3}
# what differs, and each matrix of a layer: d, k
LLAMA = LlamaConfig(**SIZES, intermediate_size=47, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
                    tie_word_embeddings=False)  # fmt: skip
MOE = Qwen3MoeConfig(**SIZES, intermediate_size=47, moe_intermediate_size=23, num_attention_heads=4, head_dim=6,
                     num_key_value_heads=2, num_experts=5, num_experts_per_tok=2, tie_word_embeddings=True)  # fmt: skip
GPT2 = GPT2Config(vocab_size=61, n_embd=40, n_layer=3, n_head=5, n_positions=37, n_inner=47, bos_token_id=0,
                  eos_token_id=0)  # fmt: skip
NEOX = GPTNeoXConfig(**SIZES, intermediate_size=47, num_attention_heads=5, hidden_act="gelu_fast")
OPT = OPTConfig(**SIZES, ffn_dim=47, num_attention_heads=5, max_position_embeddings=37, word_embed_proj_dim=40)
FALCON = FalconConfig(**SIZES, num_attention_heads=5, activation="gelu_fast", multi_query=False)
BERT = BertConfig(**SIZES, intermediate_size=47, num_attention_heads=5, max_position_embeddings=37)
ATTENTION = {"k_proj": (12, 40), "o_proj": (40, 24), "q_proj": (24, 40), "v_proj": (12, 40)}
CASES = {
    "llama": (LLAMA, {**ATTENTION, "down_proj": (40, 47), "gate_proj": (47, 40), "up_proj": (47, 40)},
              {"H": 4, "G": 2, "h": 6, "f": 47, "tied": False, "rms": True, "gated": True, "gelu": 1, "fused": True}),
    "gpt2": (GPT2, {"c_attn": (120, 40), "c_fc": (47, 40), "c_proj": (40, 40), "c_proj ": (40, 47)},
             {"H": 5, "G": 5, "h": 8, "f": 47, "tied": True, "rms": False, "gated": False, "gelu": 4, "fused": False}),
    "neox": (NEOX, {"dense": (40, 40), "dense_4h_to_h": (40, 47), "dense_h_to_4h": (47, 40),
                    "query_key_value": (120, 40)},
             {"H": 5, "G": 5, "h": 8, "f": 47, "tied": False, "rms": False, "gated": False, "gelu": 4, "fused": True}),
    "opt": (OPT, {"fc1": (47, 40), "fc2": (40, 47), "k_proj": (40, 40), "out_proj": (40, 40), "q_proj": (40, 40),
                  "v_proj": (40, 40)},
            {"H": 5, "G": 5, "h": 8, "f": 47, "tied": True, "rms": False, "gated": False, "gelu": 1, "fused": True}),
    "falcon": (FALCON, {"dense": (40, 40), "dense_4h_to_h": (40, 160), "dense_h_to_4h": (160, 40),
                        "query_key_value": (120, 40)},
               {"H": 5, "G": 5, "h": 8, "f": 160, "tied": True, "rms": False, "gated": False, "gelu": 4,
                "fused": True}),
}  # fmt: skip


def on_meta(config, auto=AutoModelForCausalLM) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = auto.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_transformers(name: str) -> None:
    config, matrices, letters = CASES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {key: tuple(weight.shape) for key, weight in model.named_parameters()}
    expected = tuple(Matrix(key.strip(), *shape, 3) for key, shape in sorted(matrices.items()))
    count = sum(weight.numel() for weight in model.parameters())
    whole = Architecture(name=name, P=count, matrices=expected, L=3, d=40, V=61, **letters)
    assert repr(read(shapes, config.to_dict(), name)) == repr(whole)
    layers = [weight for key, weight in model.named_parameters() if ".0." in key and weight.dim() == 2]
    assert whole.M == 3 * sum(weight.numel() for weight in layers)


def test_experts_that_lie_in_one_tensor_are_matrices_of_their_own() -> None:
    """Five experts in each of three layers."""
    found = {one.name: one[1:] for one in read(on_meta(MOE), MOE.to_dict(), "moe").matrices}
    assert found["gate_up_proj"] == (46, 40, 15) and found["down_proj"] == (40, 23, 15)
    assert found["q_proj"] == (24, 40, 3)


def test_norms_of_bert_whose_names_are_capital() -> None:
    found = read(on_meta(BERT, AutoModel), BERT.to_dict(), "bert")
    assert (found.rms, found.gelu, found.f) == (False, 1, 47)


SHAPES = {"model.layers.0.q_proj.weight": (40, 40), "model.embed.weight": (61, 40)}
TEXT = {"num_hidden_layers": 1, "hidden_size": 40, "num_attention_heads": 5, "vocab_size": 61}


def test_sizes_of_the_text_part_of_a_larger_model() -> None:
    found = read(SHAPES, {"text_config": TEXT, "hidden_size": 16, "num_hidden_layers": 2}, "both")
    assert (found.d, found.L, found.H, found.V, found.f, found.gelu) == (40, 1, 5, 61, 160, 1)


@pytest.mark.parametrize(
    ("added", "gated", "tied"),
    [("wi_0.weight", True, True), ("w3.weight", True, True), ("wi_1.weight", False, True)],
)
def test_gates_by_their_names(added: str, gated: bool, tied: bool) -> None:
    found = read({**SHAPES, f"model.layers.0.{added}": (47, 40)}, TEXT, "one")
    assert (found.gated, found.tied) == (gated, tied)


@pytest.mark.parametrize("output", ["lm_head.weight", "embed_out.weight"])
def test_output_layers_by_their_names(output: str) -> None:
    assert read({**SHAPES, output: (61, 40)}, TEXT, "one").tied is False


@pytest.mark.parametrize("missing", TEXT)
def test_a_configuration_that_names_too_little(missing: str) -> None:
    with pytest.raises(ValueError) as said:
        read(SHAPES, {key: value for key, value in TEXT.items() if key != missing}, "one")
    assert str(said.value) == f"one: its configuration names no `{missing}`, which a plan needs"


def test_a_gpt_by_its_sizes() -> None:
    """V d + C d + L (12 d^2 + 13 d) + 2 d; heads of 64 below d = 4,096, of 128 from there on."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    small = Architecture(
        "small", 598_144, (*(Matrix(name, 128, 128, 3) for name in names), Matrix("c_fc", 512, 128, 3),
                           Matrix("c_proj", 128, 512, 3)),
        L=3, d=128, H=2, G=2, h=64, f=512, V=11, tied=True, rms=False, gated=False, gelu=4, fused=False,
    )  # fmt: skip
    assert repr(gpt(Shape(3, 128, 11, 13), "small")) == repr(small)
    large = gpt(Shape(2, 4096, 11, 13), "large")
    assert repr((large.H, large.G, large.h)) == "(32, 32, 128)"
