"""PPO small enough for a test: a random Llama, prompts, a score that counts tokens, the config, a run."""

from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ajuste.models.one_base import OneBase, Settings
from tasks.ppo import PpoConfig
from tasks.rl import loop

VOCABULARY = 64
STOP = [2]
LIKED = 32
CONFIG = yaml.safe_load("""
score: reward
dtype: float32
r: 4
alpha: 8
targets: [all-linear]
float32_head: false
value: trunk
value_start: zero
updates: 4
batch_rows: 8
minibatches: 2
micro_rows: 2
epochs: 2
max_new_tokens: 6
temperature: 1.0
gamma: 1.0
lam: 0.95
terminal: at_end
missing_end: none
missing_end_penalty: 1.0
whiten_rewards: false
whiten_advantages: true
unbiased: false
clip: 0.2
dual_clip: null
importance_cap: null
value_clip: 0.2
vf_coef: 0.1
kl_estimator: k1
kl_control: hold
beta: 0.05
kl_target: 6.0
kl_horizon: 10000
lr: 0.003
lr_schedule: linear
adam_eps: 0.00001
adam_eps_mode: torch
max_grad_norm: 1.0
ptx: 0.0
ptx_rows: 2
alarm_kl: null
alarm_ratio: null
alarm_entropy: null
alarm_value_loss: null
alarm_repeats: null
alarm_sampler_gap: null
checkpoint_every: 1
record: [1, 3]
radar_every: 2
radar_prompts: 4
keep: last
""")


def config(**changes: object) -> PpoConfig:
    """The config with some keys changed."""
    return PpoConfig(**{**CONFIG, **changes})


def tiny_one(**settings: object) -> OneBase:
    """A random Llama with two layers, the same on every call."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    return OneBase(model, Settings(r=4, alpha=8.0, **settings))


def tiny_prompts(number: int = 12) -> list[list[int]]:
    """Prompts that begin alike and go on differently, of unequal length."""
    return [[1, 9, 10, *(11 + (i * 7 + k) % 40 for k in range(1 + i % 4))] for i in range(number)]


def count(prompts: list[list[int]], responses: Tensor, mask: Tensor) -> Tensor:
    """Tokens below LIKED in each response."""
    return ((responses < LIKED) & mask).sum(1).float()


def weights(one: OneBase) -> dict[str, Tensor]:
    """All that learns."""
    return one.trainable_state()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(folder: Path, one=None, prompts=None, score=count, look=None, **changes):
    """(what train returns, the models it trained)."""
    one = one or tiny_one()
    prompts, settings = tiny_prompts() if prompts is None else prompts, config(**changes)
    outcome = loop.train(one, settings.algorithm(), prompts, score, settings, 0, folder, STOP, look)
    return outcome, one
