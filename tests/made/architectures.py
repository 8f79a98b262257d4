"""A zoo: tiny random float32 models of the architectures that people bring as a base, each with its peculiarity alive.

Two layers of width 32 and 97 tokens: a window is shorter than the rows, a chunk too, sinks and biases are not zero,
soft caps bite, heads are tied or not. What a model computes is meaningless; that two ways of computing it agree is not.

    model = make("gemma2")                          # a causal language model, in evaluation mode
    folder = write("gemma2", tmp_path / "base")     # the same as stage `base_decoder` leaves one: tokenizer, base.json
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from ajuste.learning.text import chat
from ajuste.models.folder import quiet, sha256_of

VOCABULARY, PAD, BOS, EOS = 97, 0, 1, 2
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.15, "pad_token_id": PAD,
         "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False}
GROUPED = {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
WINDOW = {"sliding_window": 5}
HALF = {"layer_types": ["sliding_attention", "full_attention"]}
TIED = {"tie_word_embeddings": True}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 4, "mamba_n_groups": 1}


class Shape(NamedTuple):
    """transformers' name of the architecture, its options beside SIZES, and what is peculiar to it."""

    kind: str
    options: dict
    peculiar: str
    encoder: bool = False


DECODERS = {
    "llama": Shape("llama", HEADS, "grouped heads, head not tied"),
    "smollm2": Shape("llama", HEADS | TIED, "Llama with a tied head"),
    "mistral": Shape("mistral", HEADS | WINDOW, "every layer's window shorter than the rows"),
    "ministral": Shape("ministral", HEADS | WINDOW | HALF, "window in some layers"),
    "qwen2": Shape("qwen2", GROUPED | TIED, "bias of q, k and v, tied head"),
    "qwen2-window": Shape("qwen2", GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
                          "window in the last layers"),
    "qwen3": Shape("qwen3", HEADS, "norms of q and k"),
    "gemma": Shape("gemma", HEADS | TIED, "embeddings scaled, norm of 1 + w"),
    "gemma2": Shape("gemma2", HEADS | WINDOW | HALF | TIED | {
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
        "soft caps of attention and logits, windows"),
    "gemma3": Shape("gemma3_text", HEADS | WINDOW | HALF | TIED | {"query_pre_attn_scalar": 8},
                    "windows, two rotary bases"),
    "gemma4": Shape("gemma4_text", HEADS | WINDOW | HALF | TIED | {
        "final_logit_softcapping": 3.0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 16}, "embeddings of each layer, soft cap of the logits, windows"),
    "vaultgemma": Shape("vaultgemma", HEADS | WINDOW | HALF | TIED | {
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
        "soft caps, windows"),
    "phi": Shape("phi", GROUPED, "bias of the head, attention beside MLP"),
    "phi3": Shape("phi3", GROUPED | WINDOW, "q, k and v in one matrix, window"),
    "cohere": Shape("cohere", GROUPED | TIED | {"logit_scale": 0.3}, "logits scaled"),
    "cohere2": Shape("cohere2", GROUPED | TIED | WINDOW | HALF | {"logit_scale": 0.3}, "logits scaled, windows"),
    "granite": Shape("granite", GROUPED | {
        "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "embedding_multiplier": 3.0},
        "logits divided, four multipliers"),
    "modernbert-decoder": Shape("modernbert-decoder", TIED | {
        "local_attention": 8, "layer_types": ["sliding_attention", "full_attention"]},
        "a prediction head before the output layer, windows"),
    "olmo": Shape("olmo", GROUPED | {"clip_qkv": 0.5}, "norms without weights, q, k and v clipped"),
    "olmo2": Shape("olmo2", GROUPED, "norms behind the blocks"),
    "olmo3": Shape("olmo3", GROUPED | WINDOW | HALF, "norms behind the blocks, windows"),
    "smollm3": Shape("smollm3", GROUPED | TIED | {"no_rope_layers": [1, 0]}, "layers without positions"),
    "glm4": Shape("glm4", HEADS | {"attention_bias": True}, "half of a head rotated, four norms a layer"),
    "stablelm": Shape("stablelm", GROUPED | {"use_qkv_bias": True, "qk_layernorm": True}, "LayerNorm with bias"),
    "gpt-neox": Shape("gpt_neox", {}, "q, k and v in one matrix, attention beside MLP"),
    "gpt2": Shape("gpt2", TIED, "learned positions, transposed matrices, dropout"),
    "opt": Shape("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.3} | TIED,
                 "learned positions from 2 on, functional dropout"),
    "starcoder2": Shape("starcoder2", GROUPED | WINDOW, "bias everywhere, window"),
    "bloom": Shape("bloom", TIED, "ALiBi in place of positions"),
    "falcon": Shape("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}, "rotary, two norms a layer"),
    "falcon-alibi": Shape("falcon", {"alibi": True, "multi_query": False, "new_decoder_architecture": False,
                                     "parallel_attn": False, "bias": True}, "ALiBi"),
    "gpt-j": Shape("gptj", {"rotary_dim": 4}, "bias of the head, rotary in pairs"),
    "codegen": Shape("codegen", {"rotary_dim": 4}, "bias of the head, q, k and v mixed"),
    "mixtral": Shape("mixtral", HEADS | EXPERTS, "experts"),
    "qwen2-moe": Shape("qwen2_moe", GROUPED | QWEN_EXPERTS | {"shared_expert_intermediate_size": 32},
                       "experts, a shared one"),
    "qwen3-moe": Shape("qwen3_moe", HEADS | QWEN_EXPERTS, "experts, norms of q and k"),
    "olmoe": Shape("olmoe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}, "experts"),
    "phimoe": Shape("phimoe", GROUPED | EXPERTS | {"lm_head_bias": True}, "experts, bias of the head"),
    "granite-moe": Shape("granitemoe", GROUPED | EXPERTS | {"logits_scaling": 4.0}, "experts, logits divided"),
    "gpt-oss": Shape("gpt_oss", HEADS | WINDOW | HALF | EXPERTS, "sinks in the attention, experts with bias, windows"),
    "llama4": Shape("llama4_text", HEADS | EXPERTS | {
        "attention_chunk_size": 6, "layer_types": ["chunked_attention", "full_attention"], "intermediate_size_mlp": 64,
        "no_rope_layers": [1, 0], "floor_scale": 4}, "chunks shorter than the rows, experts"),
    "qwen3-next": Shape("qwen3_next", HEADS | QWEN_EXPERTS | DELTA | {"shared_expert_intermediate_size": 32},
                        "linear attention (gated delta rule), experts"),
    "qwen3.5": Shape("qwen3_5_text", HEADS | DELTA, "linear attention (gated delta rule)"),
    "lfm2": Shape("lfm2", GROUPED | TIED | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
                  "short convolutions"),
    "bamba": Shape("bamba", GROUPED | MAMBA | {"attn_layer_indices": [1]}, "state space (Mamba 2)"),
    "jamba": Shape("jamba", GROUPED | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
                                       "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8,
                                       "mamba_dt_rank": 4}, "state space (Mamba), experts"),
    "granite-hybrid": Shape("granitemoehybrid", GROUPED | EXPERTS | MAMBA | {
        "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32, "logits_scaling": 4.0},
        "state space (Mamba 2), experts, logits divided"),
    "falcon-h1": Shape("falcon_h1", GROUPED | MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
                       "attention beside state space, logits scaled"),
}
ENCODERS = {
    "bert": Shape("bert", {}, "token types, pooler", encoder=True),
    "roberta": Shape("roberta", {"pad_token_id": 1, "bos_token_id": 0}, "positions from the padding token on",
                     encoder=True),
    "deberta-v2": Shape("deberta-v2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                                       "position_biased_input": False, "max_relative_positions": 16,
                                       "type_vocab_size": 0}, "relative positions", encoder=True),
    "modernbert": Shape("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}, "windows on both sides",
                        encoder=True),
    "distilbert": Shape("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, "no token types",
                        encoder=True),
}
SHAPES = DECODERS | ENCODERS
# options that take the peculiarity away: the same weights must answer otherwise then
WIDE = {"sliding_window": 64}
WITHOUT = {
    "mistral": WIDE, "ministral": WIDE, "qwen2-window": WIDE, "gemma3": WIDE, "phi3": WIDE, "cohere2": WIDE,
    "olmo3": WIDE, "starcoder2": WIDE, "gpt-oss": WIDE, "gemma2": {"attn_logit_softcapping": None},
    "vaultgemma": {"attn_logit_softcapping": None}, "gemma4": {"final_logit_softcapping": None},
    "cohere": {"logit_scale": 1.0}, "granite": {"logits_scaling": 1.0}, "granite-moe": {"logits_scaling": 1.0},
    "granite-hybrid": {"logits_scaling": 1.0}, "falcon-h1": {"lm_head_multiplier": 1.0}, "olmo": {"clip_qkv": None},
    "modernbert-decoder": {"local_attention": 64}, "modernbert": {"local_attention": 64},
    "smollm3": {"no_rope_layers": [1, 1]}, "llama4": {"attention_chunk_size": 64}, "falcon-alibi": {"alibi": False},
}  # fmt: skip


def config_of(name: str, changed: dict | None = None) -> PretrainedConfig:
    """The configuration of that shape. A name that an architecture does not know stays there and does nothing."""
    shape = SHAPES[name]
    return AutoConfig.for_model(shape.kind, **(SIZES | shape.options | (changed or {})))


def make(name: str, seed: int = 0, changed: dict | None = None) -> nn.Module:
    """A decoder as a causal language model, an encoder bare; in evaluation mode, the same weights on every call.

    changed: options in the place of the shape's own; what they do not touch is drawn as before.
    """
    torch.manual_seed(seed)
    with quiet():
        auto = AutoModel if SHAPES[name].encoder else AutoModelForCausalLM
        model = auto.from_config(config_of(name, changed)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms, biases and sinks, which start as ones or zeros
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


def write(name: str, folder: Path, changed: dict | None = None) -> Path:
    """The model of `make` as a base folder: weights, tokenizer with a chat template, base.json."""
    with quiet():
        make(name, changed=changed).save_pretrained(folder)
    tokenizer = _tokenizer(config_of(name))
    tokenizer.save_pretrained(folder)
    identity = {"source": f"path:{name}", "id": name, "sha256": sha256_of(folder / "model.safetensors"),
                "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
                "template_sha256": chat.template_sha256(tokenizer), "dtype": "float32"}
    (folder / "base.json").write_text(json.dumps(identity))
    return folder


def rows_of(lengths: tuple[int, ...] = (17, 9, 2, 13), shared: int = 3, seed: int = 1) -> list[list[int]]:
    """Rows of token ids that begin alike, `shared` tokens (shorter rows less), none of them a control token."""
    generator = torch.Generator().manual_seed(seed)
    begin = torch.randint(3, VOCABULARY, (shared,), generator=generator).tolist()
    rows = []
    for length in lengths:
        own = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append([*begin[: length - 1], *own][:length])
    return rows


def _tokenizer(config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """One token a word, `w3` to `w96`, and the control tokens where the configuration has them."""
    names = {config.pad_token_id: "<pad>", config.bos_token_id: "<s>", config.eos_token_id: "</s>"}
    vocabulary = {names.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w96"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for message in messages %}{{ message['content'] + ' </s> ' }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   unk_token="w96", chat_template=template)
