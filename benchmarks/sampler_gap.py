"""Where the gap between the sampler's log-probabilities and the trainer's comes from: one policy, one set of responses.

    python -m benchmarks.sampler_gap [--rows 64] [--new-tokens 24] [--out docs/measured/sampler-gap.md]

Reads the default run's artifacts/merged/instruct, artifacts/adapters/ppo (the trained policy) and
artifacts/encoded/preferences. The policy answers once as a run of PPO does (bfloat16); then every way of computing goes
over the same tokens:

    sampler    token by token with a cache (ajuste/learning/layers/packed.py), rows leaving as they end
    trainer    all tokens at once behind a shared prefix, in micro-batches (ajuste/models/one_base.py)
    alone      the trainer's code, one row at a time
    plain      transformers' own forward, one row at a time

each with the output layer in bfloat16 and in float32, and once more all in float32, which stands for the exact policy.
"""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ajuste.learning.rl import rollout
from ajuste.learning.rl.sampler_gap import gap_figures
from benchmarks.beside import publish
from benchmarks.results import value

COLUMNS = {"mean": "sampler_gap_mean", "50 %": "sampler_gap_p50", "90 %": "sampler_gap_p90", "99 %": "sampler_gap_p99",
           "largest": "sampler_gap"}  # fmt: skip
HEADS = {False: "bfloat16", True: "float32"}
PAIRS = (
    ("sampler, head bfloat16", "trainer, head bfloat16", "today's default"),
    ("sampler, head float32", "trainer, head float32", "with `float32_head`"),
    ("sampler, head bfloat16", "sampler, head float32", "rounding of the logits alone, in the sampler"),
    ("trainer, head bfloat16", "trainer, head float32", "rounding of the logits alone, in the trainer"),
    ("trainer, head bfloat16", "alone, head bfloat16", "micro-batches and shared prefix"),
    ("trainer, head float32", "alone, head float32", "the same under a float32 head"),
    ("trainer, head bfloat16", "plain, head bfloat16", "our forward and transformers'"),
    ("trainer, head float32", "plain, head float32", "the same under a float32 head"),
    ("sampler, head bfloat16", "exact", "the sampler's own error"),
    ("trainer, head bfloat16", "exact", "the trainer's own error"),
    ("sampler, head float32", "exact", "the sampler's own error under a float32 head"),
    ("trainer, head float32", "exact", "the trainer's own error under a float32 head"),
    ("sampler, all float32", "exact", "both in float32"),
)
Answers = tuple[list[list[int]], Tensor, Tensor]  # prompts, responses, mask


def policy(options: argparse.Namespace, dtype: torch.dtype, float32_head: bool):
    """The one base with the trained policy on it."""
    import peft
    from safetensors.torch import load_file

    from ajuste.models.one_base import POLICY, WEIGHTS, OneBase, Settings

    config = peft.LoraConfig.from_pretrained(options.adapter)
    settings = Settings(config.r, config.lora_alpha, tuple(sorted(config.target_modules)), float32_head=float32_head)
    one = OneBase.build(options.base, None, settings, dtype)
    found = peft.set_peft_model_state_dict(one.model, load_file(options.adapter / WEIGHTS), adapter_name=POLICY)
    assert not found.unexpected_keys, found.unexpected_keys[:3]
    return one


@torch.no_grad()
def sampler(one, answers: Answers, temperature: float) -> Tensor:
    """The log-probabilities of the responses, token by token as they were drawn [B, R]."""
    prompts, responses, mask = answers
    run, found, rows = one.begin(prompts, responses.shape[1]), torch.zeros(mask.shape), torch.arange(len(prompts))
    for t in range(responses.shape[1]):
        log_p = (run.logits.float() / temperature).log_softmax(1)
        found[rows, t] = log_p.gather(1, responses[rows, t][:, None])[:, 0]
        going = mask[rows, t + 1] if t + 1 < mask.shape[1] else mask.new_zeros(len(rows))
        if not going.any():
            return found
        if not going.all():
            run.keep(going.nonzero().flatten())
            rows = rows[going]
        run.step(responses[rows, t])
    return found


@torch.no_grad()
def trainer(one, answers: Answers, temperature: float, micro_rows: int) -> Tensor:
    """The same, all tokens at once [B, R]."""
    prompts, responses, mask = answers
    parts = torch.arange(len(prompts)).split(micro_rows)
    return torch.cat(
        [one.policy_and_values([prompts[i] for i in part], responses[part], mask[part], temperature)[0]
         for part in parts]
    )  # fmt: skip


@torch.no_grad()
def plain(one, answers: Answers, temperature: float) -> Tensor:
    """The same by transformers' forward of each row [B, R]."""
    prompts, responses, mask = answers
    found = torch.zeros(mask.shape)
    for number, (prompt, row, real) in enumerate(zip(prompts, responses, mask, strict=True)):
        ids = torch.tensor([[*prompt, *row[real].tolist()]])
        with one.using("policy"):
            logits = one.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        log_p = (logits.float() / temperature).log_softmax(1)
        found[number, : len(log_p)] = log_p.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return found


def measured(options: argparse.Namespace) -> tuple[dict[str, Tensor], Tensor]:
    """The log-probabilities of every way by its name, and the mask of the responses."""
    import pyarrow.parquet as pq

    from ajuste.learning.text import chat
    from ajuste.models.folder import load_tokenizer

    table = pq.read_table(options.encoded / "prompts_train.parquet", columns=["row_id", "prompt_ids"])
    prompts = table.sort_by("row_id")["prompt_ids"].to_pylist()[: options.rows]
    stop = chat.end_of_turn(load_tokenizer(options.base))
    T, ways, answers = options.temperature, {}, None
    for float32_head, name in HEADS.items():
        one = policy(options, torch.bfloat16, float32_head)
        if answers is None:
            generator = torch.Generator().manual_seed(options.seed)
            drawn = rollout.sample(one, prompts, options.new_tokens, stop, 0, T, generator)
            answers = (prompts, drawn.responses, drawn.mask)
        ways[f"sampler, head {name}"] = sampler(one, answers, T)
        ways[f"trainer, head {name}"] = trainer(one, answers, T, options.micro_rows)
        ways[f"alone, head {name}"] = trainer(one, answers, T, 1)
        ways[f"plain, head {name}"] = plain(one, answers, T)
    one = policy(options, torch.float32, False)
    ways["sampler, all float32"] = sampler(one, answers, T)
    ways["exact"] = trainer(one, answers, T, options.micro_rows)
    return ways, answers[2]


def report(ways: dict[str, Tensor], mask: Tensor, options: argparse.Namespace) -> str:
    """The results as Markdown."""
    lines = [
        "# The gap between sampler and trainer, and where it comes from",
        "",
        f"`python -m benchmarks.sampler_gap --rows {options.rows} --new-tokens {options.new_tokens}`: the trained",
        f"policy of the default run, {len(mask)} responses, {int(mask.sum())} tokens at temperature",
        f"{options.temperature}, {options.threads} thread, {platform.machine()}, torch {torch.__version__}.",
        "Absolute difference of two log-probabilities of the same token, in nats; the last column is the share of",
        f"tokens whose ratio it alone puts beyond a clip of {options.clip}.",
        "",
        f"| one | other | what it shows | {' | '.join(COLUMNS)} | beyond the clip |",
        f"|---|---|---|{'---|' * len(COLUMNS)}---|",
    ]
    for one, other, said in PAIRS:
        found = gap_figures(ways[one], ways[other], mask, options.clip)
        numbers = " | ".join(f"{found[key]:.4f}" for key in COLUMNS.values())
        lines.append(f"| {one} | {other} | {said} | {numbers} | {found['sampler_gap_beyond_clip']:.2%} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("artifacts/merged/instruct"))
    parser.add_argument("--adapter", type=Path, default=Path("artifacts/adapters/ppo"))
    parser.add_argument("--encoded", type=Path, default=Path("artifacts/encoded/preferences"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--micro-rows", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/measured/sampler-gap.md"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ways, mask = measured(options)
    for one, other, _ in PAIRS:
        found = gap_figures(ways[one], ways[other], mask, options.clip)
        value(f"{one} and {other}, mean", "nats", [found[COLUMNS["mean"]]])
    publish(options.out, report(ways, mask, options))


if __name__ == "__main__":
    main()
