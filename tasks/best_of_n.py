"""Best-of-n: how far the reward model can carry the SFT policy without any training.

    draw     N responses of the policy to each prompt, scored by the reward model (proxy) and by gold, which no training
             saw; the same response to a prompt is scored once, so equal responses have equal scores
    curve    for n = 1, 2, 4 ... N the proxy and the gold of the best of n by proxy, their gains over n = 1, and how far
             the best of n is from the policy: the KL measured from the samples, and its bound ln n - (n - 1)/n

Formulas: ajuste/learning/rl/best_of_n.py. Every n is estimated from all N samples of a prompt. Intervals are 95 %
percentile bootstrap intervals over prompts, gains paired. Proxy up with gold flat or down is reward hacking.

Reads   artifacts/merged/{instruct, reward, gold}, artifacts/encoded/preferences
Writes  a Parquet file of samples, N rows a prompt; curve.json
Run it: `ajuste study best-of-n`, after the default run (studies/best-of-n/).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ajuste.core.errors import DataError, UsageError
from ajuste.core.figures import rounded
from ajuste.core.params import Compute
from ajuste.learning.rl import best_of_n
from ajuste.learning.seeds import seed_everything
from ajuste.learning.statistics import metrics
from ajuste.learning.text import chat
from ajuste.models import decoder
from tasks.evaluate import policy

COLUMNS = ("row_id", "response_ids", "text", "ended", "proxy", "gold")


class DrawConfig(policy.PolicyConfig):
    """How the samples are drawn: as section `evaluate.ppo` says, so that the figures compare with a policy's."""

    samples: int = Field(ge=2, description="Responses to each prompt, N.")


class Folders(NamedTuple):
    """What is read: the SFT policy, its two judges, the encoded prompts."""

    base: Path
    reward: Path
    gold: Path
    encoded: Path


def draw(config: DrawConfig, compute: Compute, folders: Folders, prompts: policy.Prompts, out: Path) -> int:
    """Write N scored samples a prompt into the Parquet file `out`; returns how many tokens were generated.

    Columns: row_id, response_ids, text, ended, proxy, gold; a prompt's samples stand together, in the order in which
    they were drawn. Raises UsageError for a folder that is no such model.
    """
    seed_everything(compute.seed, compute.threads)
    device, N = compute.torch_device(), config.samples
    asked = _repeated(prompts, range(len(prompts.ids)), N)
    try:
        model, tokenizer, _ = decoder.load(folders.base, dtype=getattr(torch, config.dtype))
        stop, pad = chat.end_of_turn(tokenizer), tokenizer.pad_token_id
        said = policy.respond(model.to(device), asked.ids, config.sampling(), stop, pad, compute.seed)
        del model
        places = [(i // N, tuple(row)) for i, row in enumerate(said)]
        different = sorted(set(places))
        once = _repeated(prompts, [i for i, _ in different], 1)
        rows = {policy.BEFORE: [list(row) for _, row in different]}
        texts = {policy.BEFORE: policy.texts_of(once, rows[policy.BEFORE], tokenizer)}
        gold = policy.score_gold(folders.gold, texts, config.batch_rows, device)[policy.BEFORE]
        proxy = policy.score_proxy(folders.reward, once, rows, config, device)[policy.BEFORE]
    except ValueError as error:
        raise UsageError(str(error)) from None
    of = {place: number for number, place in enumerate(different)}
    numbers = [of[place] for place in places]
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({
        "row_id": asked.row_ids, "response_ids": pa.array(said, pa.list_(pa.int32())),
        "text": [texts[policy.BEFORE][number] for number in numbers], "ended": [row[-1] in stop for row in said],
        "proxy": rounded(proxy[numbers].tolist()), "gold": rounded(gold[numbers].tolist()),
    }), out)  # fmt: skip
    return sum(map(len, said))


def _repeated(prompts: policy.Prompts, places: range | list[int], times: int) -> policy.Prompts:
    """The prompts at these places, each `times` times in a row."""
    columns = (prompts.row_ids, prompts.ids, prompts.prefilled, prompts.prefills)
    return policy.Prompts(*([column[i] for i in places for _ in range(times)] for column in columns))


def read_samples(path: Path) -> dict[str, np.ndarray | list]:
    """Of the file that `draw` wrote: row_id [P], and proxy, gold [P, N], ended [P, N], response_ids and text [P][N].

    Raises UsageError for a missing file, DataError for one whose prompts have unequal numbers of samples.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing: run stage `sample` of the study best-of-n")
    table = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    ids = list(dict.fromkeys(table["row_id"]))
    N = len(table["row_id"]) // max(1, len(ids))
    if table["row_id"] != [row_id for row_id in ids for _ in range(N)]:
        raise DataError(f"{path} has unequal numbers of samples a prompt: run stage `sample` again")
    found: dict[str, np.ndarray | list] = {"row_id": ids}
    for name in ("proxy", "gold", "ended"):
        found[name] = np.array(table[name], dtype=float).reshape(len(ids), N)
    for name in ("response_ids", "text"):
        found[name] = [table[name][start : start + N] for start in range(0, len(table[name]), N)]
    return found


def curve(samples: Path, bootstrap: int, seed: int) -> dict:
    """curve.json: {"prompts", "samples", "points": [{"n", "proxy", "gold", their gains, "kl", "kl_bound"}]}."""
    found = read_samples(samples)
    proxy, gold = found["proxy"], found["gold"]
    P, N = proxy.shape
    counts, ones = metrics.resamples(P, bootstrap, seed), np.ones(P)
    points = []
    for n in steps(N):
        point: dict = {"n": n, "kl_bound": best_of_n.kl_bound(n)}
        for name, values in (("proxy", proxy), ("gold", gold)):
            best = best_of_n.best_of_n(proxy, values, n)
            point[name] = metrics.estimate(best, ones, counts)
            point[f"{name}_gain"] = metrics.estimate(best - best_of_n.best_of_n(proxy, values, 1), ones, counts)
        kl = np.array([best_of_n.measured_kl(scores, n) for scores in proxy])
        point["kl"] = metrics.estimate(kl, ones, counts)
        points.append(point)
    return {"prompts": P, "samples": N, "points": points}


def steps(N: int) -> list[int]:
    """1, 2, 4 ... and N."""
    return sorted({2**i for i in range(N.bit_length()) if 2**i <= N} | {N})
