"""The loop of PPO (Ouyang et al. 2022, details of Huang et al. 2022 and 2024), an update in seven steps:

    1 rollout      the policy answers the next prompts, sampling at `temperature`
    2 score        the score function reads prompts and responses; old log-probs, entropy and values of the policy,
                   log-probs of the reference (the same model with its adapter off)
    3 KL, rewards  kl_t = estimator(log pi - log pi_ref);  r_t = -beta kl_t, and the score once, at the end
    4 advantages   GAE, returns, whitening over the batch of all processes
    5 learning     epochs x minibatches x micro-batches: clipped losses, one optimiser step a minibatch
    6 controller   beta follows its target, the learning rate falls to 0
    7 record       history, flight recorder, radar, checkpoint

The mathematics is learning/{advantages,kl,ppo}.py, the models are ajuste/models/one_base.py. Any function
(prompts, responses, mask) -> [B] can be the score.

Several processes (accelerate): each samples its own prompts with its own generator; token counts, whitening, KL and
gradients are summed over all, so a step is that of the whole batch. `micro_rows` changes memory and nothing else.
The old log-probs are computed in the very micro-batches of the first epoch: its first ratio is exactly 1.

Killed at any moment and started again with the same `folder`, a run ends with the same bytes (tasks/rl/state.py).
An alarm ends it and takes it back to weights that were found good (tasks/rl/alarms.py).
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import write_atomically
from ajuste.core.interrupts import interruptible
from ajuste.learning.rl import advantages, kl, ppo, rollout
from ajuste.models.one_base import OneBase
from tasks.rl import alarms as rl_alarms
from tasks.rl import recorder
from tasks.rl import state as rl_state
from tasks.rl.config import PpoConfig
from tasks.rl.episodes import Episodes, repeats
from tasks.rl.learn import Ptx, learn
from tasks.rl.world import World

Prompts = list[list[int]]
Score = Callable[[Prompts, Tensor, Tensor], Tensor]  # (prompts, responses [B, R], mask [B, R]) -> [B]
Look = Callable[[int, dict | None], tuple[dict, list[dict]]]  # (update, row of update 0) -> (radar row, samples)
OTHER_RANK = 1_000_003  # between the seeds of two processes


@dataclass
class Outcome:
    """What a run came to. `one` itself holds the weights of update `kept`."""

    history: list[dict]
    radar: list[dict]
    samples: list[dict]
    alarms: list[dict]
    kept: int
    seconds: dict[str, float]
    tokens: int


def train(
    one: OneBase,
    prompts: Prompts,
    score: Score,
    config: PpoConfig,
    seed: int,
    folder: Path,
    stop_ids: list[int],
    look: Look | None = None,
    ptx: Ptx | None = None,
) -> Outcome:
    """Train the policy of `one` on `prompts` (token ids); checkpoints, history and flight grow in `folder`.

    score gives a number a response; look, if given, is the radar, and ptx the extra loss. Raises DataError without
    prompts, UsageError when a number of the config does not fit, KeyboardInterrupt when interrupted (all is saved).
    """
    loop = _Loop(one, prompts, score, config, seed, folder, stop_ids, look, ptx)
    return loop.run()


class _Loop:
    def __init__(self, one, prompts, score, config, seed, folder, stop_ids, look, ptx):
        if not prompts:
            raise DataError("PPO has no prompt left to answer: add prompts, or make max_new_tokens smaller")
        self.world = World(next(one.parameters()).device)
        self.rows = config.batch_rows // self.world.processes
        if self.rows * self.world.processes != config.batch_rows or self.rows < config.minibatches:
            raise UsageError(
                f"ppo: batch_rows {config.batch_rows} cannot be cut into {self.world.processes} processes and "
                f"{config.minibatches} minibatches"
            )
        self.one, self.prompts, self.score, self.config, self.folder = one, prompts, score, config, folder
        self.seed, self.stop_ids, self.look, self.ptx = seed, stop_ids, look, ptx
        self.own_seed = seed + OTHER_RANK * self.world.rank
        self.options = advantages.Options(
            config.gamma, config.lam, config.terminal, config.missing_end, config.missing_end_penalty,
            config.whiten_rewards, config.whiten_advantages, config.unbiased,
        )
        groups = [{"params": one.policy_parameters()}, {"params": one.value_parameters()}]
        optimiser = ppo.Adam(groups, config.lr, eps=config.adam_eps, eps_mode=config.adam_eps_mode)
        beta = kl.Beta(config.beta, config.kl_control, config.kl_target, config.kl_horizon)
        generator = torch.Generator().manual_seed(self.own_seed)
        self.state = rl_state.State(one, optimiser, beta, generator, self.world)
        self.seconds: Counter[str] = Counter()
        self.tokens = 0

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self._begin()
        state, config, alarms = self.state, self.config, []
        with interruptible() as interrupt:
            while state.update < config.updates:
                try:
                    self._update(state.update + 1)
                except rl_alarms.Alarm as alarm:
                    alarms = self._roll_back(alarm)
                    break
                due = state.update % config.checkpoint_every == 0 or state.update == config.updates
                if due or interrupt.asked:
                    state.save(self.folder)
                if interrupt.asked and state.update < config.updates:
                    raise KeyboardInterrupt
        if not alarms:
            rl_alarms.report(self.folder, None, {}, 0)
        return Outcome(
            state.history, state.radar, state.samples, alarms, self._keep(), dict(self.seconds), self.tokens
        )

    def _begin(self) -> None:
        """Go on from the last checkpoint, or make checkpoint 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.world.main:
            rl_state.resumable(self.folder)  # removes spoilt ones before the others look
        self.world.wait()
        checkpoint = rl_state.resumable(self.folder)
        if checkpoint is not None:
            self.state.load(checkpoint)
        else:
            self._radar()
            self.state.save(self.folder)
        if self.world.main:
            rl_state.write_history(self.folder, self.state.history)
            write_atomically(self.folder / "progress.json", f'{{"steps": {self.config.updates}}}\n')

    def _update(self, update: int) -> None:
        with self._clock("rollout"):
            episodes = self._rollout()
        with self._clock("score"):
            self._score(episodes, update)
        self._rewards_and_advantages(episodes)
        # what the policy of the update before did; it has had a checkpoint of its own
        self._check(update, last_good=update - 2)
        with self._clock("learn"):
            self._learn(episodes, update)
        self._check(update, last_good=update - 1)
        self._control(update)
        self._record(episodes, update)

    # --- 1 ------------------------------------------------------------------------------------------------------------

    def _rollout(self) -> Episodes:
        """The next prompts of an endless stream, each once a pass over all; every process takes its share."""
        config, state = self.config, self.state
        own = range(state.cursor + self.world.rank, state.cursor + config.batch_rows, self.world.processes)
        chosen = [self.prompts[self._prompt(position)] for position in own]
        state.cursor += config.batch_rows
        self.sampled = rollout.sample(
            self.one, chosen, config.max_new_tokens, self.stop_ids, _padding(self.stop_ids), config.temperature,
            state.generator,
        )
        return Episodes(chosen, *(tensor.cpu() for tensor in self.sampled[:3]))

    def _prompt(self, position: int) -> int:
        """The number of the prompt at a position of the stream: a new order, of (seed, pass), for each pass."""
        turn, place = divmod(position, len(self.prompts))
        return int(np.random.default_rng([self.seed, turn]).permutation(len(self.prompts))[place])

    # --- 2 ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _score(self, episodes: Episodes, update: int) -> None:
        """Scores, and what policy and reference think of the sampled tokens, in the micro-batches of epoch 0."""
        T = self.config.temperature
        B, R = episodes.mask.shape
        episodes.scores = torch.empty(B)
        episodes.log_probs, episodes.entropy, episodes.reference = (torch.zeros(B, R) for _ in range(3))
        episodes.values = torch.zeros(B, R + 1)
        for rows in self._minibatches(update, epoch=0):
            for part in rows.split(self.config.micro_rows):
                batch = episodes.rows(part)
                episodes.scores[part] = self.score(*batch).float().cpu()
                log_probs, entropy, values = self.one.policy_and_values(*batch, T)
                episodes.log_probs[part], episodes.entropy[part] = log_probs.cpu(), entropy.cpu()
                episodes.values[part] = values.cpu()
                episodes.reference[part] = self.one.reference(*batch, T).cpu()

    def _minibatches(self, update: int, epoch: int) -> list[Tensor]:
        return ppo.minibatches(self.rows, self.config.minibatches, self.own_seed, update, epoch)

    # --- 3, 4 ---------------------------------------------------------------------------------------------------------

    def _rewards_and_advantages(self, episodes: Episodes) -> None:
        config, beta, mask = self.config, self.state.beta.value, episodes.mask
        episodes.kl = kl.token_kl(episodes.log_probs, episodes.reference, mask, config.kl_estimator)
        targets = advantages.episode_targets(
            episodes.kl, episodes.scores, episodes.values, mask, episodes.ended, beta, self.options, self.world.sum
        )
        episodes.rewards, episodes.advantages = targets.rewards, targets.advantages
        episodes.returns, episodes.value_mask = targets.returns, targets.value_mask

        k1, k2, k3 = (
            kl.response_kl(episodes.log_probs, episodes.reference, mask, name) for name in ("k1", "k2", "k3")
        )
        columns = {
            "score": episodes.scores, "kl": k1, "k2": k2, "k3": k3, "rlhf_reward": episodes.scores - beta * k1,
            "length": mask.sum(1), "ended": episodes.ended, "repeats": repeats(episodes),
            "entropy": episodes.entropy.sum(1), "squares": episodes.scores.double() ** 2,
        }  # fmt: skip
        totals = self.world.totals({name: column.double().sum() for name, column in columns.items()})
        means = {name: total / config.batch_rows for name, total in totals.items()}
        gap = ((episodes.log_probs - self.sampled.log_probs.cpu()) * mask).abs().max()
        self.tokens += int(totals["length"])
        self.row = means | {
            "entropy": totals["entropy"] / totals["length"],
            "score_std": max(0.0, means.pop("squares") - means["score"] ** 2) ** 0.5,
            "beta": beta,
            "sampler_gap": self.world.largest(gap),  # between the sampling's own log-probs and those of the training
        }

    # --- 5 ------------------------------------------------------------------------------------------------------------

    def _learn(self, episodes: Episodes, update: int) -> None:
        lr = self.config.lr * ppo.schedule(self.config.lr_schedule, update - 1, self.config.updates)
        order = partial(self._minibatches, update)
        self.row |= learn(self.state, episodes, self.config, self.world, order, lr, self.ptx)

    # --- 6, 7 ---------------------------------------------------------------------------------------------------------

    def _control(self, update: int) -> None:
        self.state.beta.update(self.row["kl"], self.config.batch_rows)

    def _record(self, episodes: Episodes, update: int) -> None:
        state = self.state
        state.update = update
        row = {"step": update, "episodes": update * self.config.batch_rows, **self.row}
        state.history.append(row)
        if self.world.main:
            if update in self.config.record:
                recorder.write(self.folder, update, episodes, row, self.config)
            rl_state.write_history(self.folder, state.history)
        if update % self.config.radar_every == 0 or update == self.config.updates:
            self._radar()

    def _radar(self) -> None:
        """Look at the validation prompts and keep these weights, in case they are the best."""
        if self.look is None:
            return
        state = self.state
        with self._clock("radar"):
            row, samples = self.look(state.update, state.radar[0] if state.radar else None)
        state.radar.append(row)
        state.samples += samples
        if self.world.main:
            rl_state.save_weights(self.one, self.folder, state.update)

    def _keep(self) -> int:
        """Load the weights to keep and return their update: the peak of the gold score after update 0, or the last."""
        peaks = [row for row in self.state.radar if row["update"] and "gold" in row]
        if self.config.keep == "last" or not peaks:
            return self.state.update
        best = max(peaks, key=lambda row: (row["gold"]["value"], -row["update"]))["update"]
        self.world.wait()
        rl_state.load_weights(self.one, self.folder, best)
        return best

    # --- alarms -------------------------------------------------------------------------------------------------------

    def _check(self, update: int, last_good: int) -> None:
        rl_alarms.check(self.config, update, self.row, last_good)

    def _roll_back(self, alarm: rl_alarms.Alarm) -> list[dict]:
        """Weights, moments, history: all as they were. Raises UsageError when nothing had been learnt yet."""
        if alarm.last_good < 0:
            raise UsageError(
                f"{alarm}, and nothing has been learnt yet: set `ppo.{alarm.key}` in params.yaml to what is usual here"
            ) if alarm.limit is not None else DataError(f"{alarm}: the very first scores are not finite")
        self.state.load(rl_state.last_good(self.folder, alarm.last_good))
        if not self.state.radar or self.state.radar[-1]["update"] != self.state.update:
            self._radar()
        if not self.world.main:
            return [{}]
        rl_state.write_history(self.folder, self.state.history)
        return rl_alarms.report(self.folder, alarm, self.row, self.state.update)

    @contextmanager
    def _clock(self, name: str):
        began = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - began


def _padding(stop_ids: list[int]) -> int:
    """A token id that ends nothing; the mask says what is padding."""
    return next(token for token in range(len(stop_ids) + 1) if token not in stop_ids)
