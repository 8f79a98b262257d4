"""Small random models of the families that Ajuste adapts, and LoRA on them with random A and B."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

VOCABULARY, WIDTH, STD = 97, 32, 0.2        # at the usual std of 0.02 a toy's logits hardly feel its attention weights
BODY = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "initializer_range": STD}
DECODER = BODY | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}

# family: (config, the adapted layers); GPT-2's c_attn is Wq, Wk and Wv fused in one transposed Conv1D.
ENCODERS = {
    "bert": (BertConfig(**BODY, num_labels=3), ["query", "value", "dense"]),
    "roberta": (RobertaConfig(**BODY, pad_token_id=1, num_labels=3), ["query", "value"]),
}
DECODERS = {
    "gpt2": (GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
                        eos_token_id=None, pad_token_id=0, initializer_range=STD), ["c_attn", "c_proj", "c_fc"]),
    "llama": (LlamaConfig(**DECODER), ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "qwen2": (Qwen2Config(**DECODER), ["q_proj", "v_proj", "down_proj"]),
    "qwen3": (Qwen3Config(**DECODER, head_dim=8), ["q_proj", "k_proj", "v_proj"]),
}
FAMILIES = ENCODERS | DECODERS


def base_model(family, seed=0):
    """A random model of that family in evaluation mode: a classifier of 3 classes, or a causal language model."""
    torch.manual_seed(seed)
    config = FAMILIES[family][0]
    if family in ENCODERS:
        return AutoModelForSequenceClassification.from_config(config).eval()
    return AutoModelForCausalLM.from_config(config).eval()


def with_adapter(model, family, r=4, alpha=8, seed=1, rslora=False, trained=True, dora=False):
    """The same model with LoRA or DoRA; `trained` draws B (and m) too, as if training had moved them."""
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=FAMILIES[family][1], use_rslora=rslora, use_dora=dora,
                        fan_in_fan_out=family == "gpt2", modules_to_save=["classifier"] if family in ENCODERS else None)
    adapted = get_peft_model(model, config).eval()
    if trained:
        for name, B in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(B, std=STD)
            if "lora_magnitude_vector" in name:
                B.data.mul_(torch.empty_like(B).uniform_(0.5, 1.5))
    return adapted


def rows(family, n=6, length=11, seed=2):
    """n rows of random token ids without padding, and their mask."""
    torch.manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (n, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
