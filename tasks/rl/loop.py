"""The loop of learning from samples: an update in six steps, whatever the algorithm.

    1 rollout    the policy answers the next prompts, sampling at `temperature`
    2 score      the score function reads prompts and responses; log-probs, entropy and values of the policy, log-probs
                 of the reference (the same model with its adapter off)               tasks/rl/score.py
    3 targets    what the algorithm wants each token to learn                         tasks/rl/algorithm.py
    4 learning   epochs x minibatches x micro-batches of the algorithm's losses, an optimiser step a minibatch
                                                                                      tasks/rl/learn.py
    5 control    beta, the price of a nat away from the reference, follows its target; the learning rate falls to 0
    6 record     history, flight recorder, radar, checkpoint

An algorithm is what fills steps 3 and 4. A score is any function (prompts, responses, mask) -> [B]: a reward model, a
rule that checks, one of the user's own. The models are ajuste/models/one_base.py.

Several processes (accelerate): each samples its own prompts with its own generator; items, whitening, KL and gradients
are summed over all, so a step is that of the whole batch, instruction rows included. The first one alone writes.
`micro_rows` changes memory and nothing else.

Killed at any moment and started again with the same `folder`, a run ends with the same bytes (tasks/rl/state.py).
An alarm ends it and takes it back to weights that were found good (tasks/rl/alarms.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ajuste.core import room
from ajuste.core.errors import DataError, UsageError
from ajuste.core.home import write_atomically
from ajuste.core.interrupts import interruptible
from ajuste.learning.rl import kl, steps
from ajuste.models.one_base import OneBase
from tasks.rl import alarms as rl_alarms
from tasks.rl import recorder
from tasks.rl import state as rl_state
from tasks.rl.algorithm import Algorithm
from tasks.rl.clock import Clock
from tasks.rl.config import SamplesConfig
from tasks.rl.episodes import Episodes
from tasks.rl.learn import Ptx, learn
from tasks.rl.score import Row, Score, answered, figures, judged
from tasks.rl.world import World

Prompts = list[list[int]]
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
    algorithm: Algorithm,
    prompts: Prompts,
    score: Score,
    config: SamplesConfig,
    seed: int,
    folder: Path,
    stop_ids: list[int],
    look: Look | None = None,
    ptx: Ptx | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Train the policy of `one` on `prompts` (token ids); checkpoints, history and flight grow in `folder`.

    score gives a number a response; look, if given, is the radar, ptx an extra loss (learn.py), and clock what takes
    the time.
    Raises DataError without prompts, UsageError when a number of the config does not fit, KeyboardInterrupt when
    interrupted (all is saved).
    """
    loop = _Loop(one, algorithm, prompts, score, config, seed, folder, stop_ids, look, ptx, clock or Clock())
    return loop.run()


class _Loop:
    """What stays over the run; what an update makes is passed from step to step."""

    def __init__(self, one, algorithm, prompts, score, config, seed, folder, stop_ids, look, ptx, clock):
        if not prompts:
            raise DataError("there is no prompt left to answer: add prompts, or make max_new_tokens smaller")
        self.world = World(next(one.parameters()).device)
        self.rows = _share(algorithm, config, self.world.processes)
        self.one, self.algorithm, self.prompts, self.score, self.config = one, algorithm, prompts, score, config
        self.seed, self.folder, self.stop_ids, self.look, self.ptx = seed, folder, stop_ids, look, ptx
        self.clock = clock
        self.own_seed = seed + OTHER_RANK * self.world.rank
        groups = [{"params": one.policy_parameters()}, {"params": one.value_parameters()}]
        groups = [group for group in groups if group["params"]]  # without a value function there is one
        optimiser = steps.Adam(groups, config.lr, eps=config.adam_eps, eps_mode=config.adam_eps_mode)
        beta = kl.Beta(config.beta, config.kl_control, config.kl_target, config.kl_horizon)
        generator = torch.Generator().manual_seed(self.own_seed)
        self.state = rl_state.State(one, optimiser, beta, generator, self.world)

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        self._begin()
        state, config, clock, alarms = self.state, self.config, self.clock, []
        with interruptible() as interrupt:
            while state.update < config.updates:
                try:
                    with clock.update():
                        self._update(state.update + 1)
                except rl_alarms.Alarm as alarm:
                    alarms = self._roll_back(alarm)
                    break
                due = state.update % config.checkpoint_every == 0 or state.update == config.updates
                asked = self.world.largest(interrupt.asked) > 0  # of one process: all stop at the same update
                if due or asked:
                    state.save(self.folder)
                if asked and state.update < config.updates:
                    raise KeyboardInterrupt
        if not alarms:
            rl_alarms.clear(self.folder)
        return Outcome(
            state.history, state.radar, state.samples, alarms, self._keep(), dict(clock.seconds), clock.tokens
        )

    def _begin(self) -> None:
        """Go on from the last checkpoint, or make checkpoint 0."""
        if self.world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            rl_state.resumable(self.folder)  # removes spoilt ones before the others look
        self.world.wait()
        checkpoint = rl_state.resumable(self.folder)
        if checkpoint is not None:
            self.state.load(checkpoint)
        else:
            if self.world.main:
                weights = room.for_training(self.state.parameters(), rl_state.KEPT)
                room.ask({self.folder: weights}, "the checkpoints of this training")
            self._radar()
            self.state.save(self.folder)
        if self.world.main:
            rl_state.write_history(self.folder, self.state.history)
            write_atomically(self.folder / "progress.json", f'{{"steps": {self.config.updates}}}\n')

    def _update(self, update: int) -> None:
        """Raises Alarm when a figure is beyond its limit."""
        config, state, clock, check = self.config, self.state, self.clock, partial(rl_alarms.check, self.config, update)
        with clock.phase("rollout"):
            episodes = answered(
                self.one, self._next_prompts(), config.max_new_tokens, self.stop_ids, config.temperature,
                state.generator,
            )  # fmt: skip
            clock.tokens += int(self.world.sum(episodes.mask.sum()))
        with clock.phase("score"):
            parts = [part for rows in self._minibatches(update, epoch=0) for part in rows.split(config.micro_rows)]
            episodes = judged(episodes, self.one, self.score, parts, config.temperature)
        episodes = self.algorithm.targets(episodes, state.beta.value, self.world.sum)
        row = figures(episodes, self.algorithm.clip, state.beta.value, self.world)
        # what the policy of the update before did; it has had a checkpoint of its own
        check(row, last_good=update - 2)
        with clock.phase("learn"):
            lr = config.lr * steps.schedule(config.lr_schedule, update - 1, config.updates)
            order = partial(self._minibatches, update)
            learnt, new = learn(state, self.algorithm, episodes, config, self.world, order, lr, self.ptx)
        row |= learnt
        check(row, last_good=update - 1)
        state.beta.update(row["kl"], config.batch_rows)
        self._record(replace(episodes, new_log_probs=new), row, update)

    # --- order --------------------------------------------------------------------------------------------------------

    def _next_prompts(self) -> Prompts:
        """The next ones of an endless stream, each once a pass over all; every process takes its share.

        Each stands as often in a row as the algorithm wants it answered.
        """
        state, group = self.state, self.algorithm.group
        end = state.cursor + self.config.batch_rows // group
        own = range(state.cursor + self.world.rank, end, self.world.processes)
        state.cursor = end
        return [self.prompts[self._prompt(position)] for position in own for _ in range(group)]

    def _prompt(self, position: int) -> int:
        """The number of the prompt at a position of the stream: a new order, of (seed, pass), for each pass."""
        turn, place = divmod(position, len(self.prompts))
        return int(np.random.default_rng([self.seed, turn]).permutation(len(self.prompts))[place])

    def _minibatches(self, update: int, epoch: int) -> list[Tensor]:
        return steps.minibatches(self.rows, self.config.minibatches, self.own_seed, update, epoch)

    # --- record -------------------------------------------------------------------------------------------------------

    def _record(self, episodes: Episodes, learnt: Row, update: int) -> None:
        state, config = self.state, self.config
        state.update = update
        row = {"step": update, "episodes": update * config.batch_rows, **learnt}
        state.history.append(row)
        if self.world.main:
            if update in config.record:
                settings = {"temperature": config.temperature, **self.algorithm.settings()}
                recorder.write(self.folder, update, episodes, row, settings)
            rl_state.write_history(self.folder, state.history)
        if update % config.radar_every == 0 or update == config.updates:
            self._radar()

    def _radar(self) -> None:
        """Look at the validation prompts and keep these weights, in case they are the best."""
        if self.look is None:
            return
        state = self.state
        with self.clock.phase("radar"):
            row, samples = self.world.same(self.look(state.update, state.radar[0] if state.radar else None))
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

    def _roll_back(self, alarm: rl_alarms.Alarm) -> list[dict]:
        """Weights, moments, history: all as they were. Raises UsageError when nothing had been learnt yet."""
        name = self.algorithm.name
        if alarm.last_good < 0:
            raise UsageError(
                f"{alarm}, and nothing has been learnt yet: set `{name}.{alarm.key}` in params.yaml to what is usual "
                "here"
            ) if alarm.limit is not None else DataError(f"{alarm}: the very first scores are not finite")
        self.state.load(rl_state.last_good(self.folder, alarm.last_good))
        if not self.state.radar or self.state.radar[-1]["update"] != self.state.update:
            self._radar()
        if not self.world.main:
            return [{}]
        rl_state.write_history(self.folder, self.state.history)
        return rl_alarms.report(self.folder, alarm, self.state.update, name)


def _share(algorithm: Algorithm, config: SamplesConfig, processes: int) -> int:
    """Episodes of one process. Raises UsageError when the batch cannot be cut into equal shares of whole groups."""
    rows = config.batch_rows // processes
    if config.ptx and config.ptx_rows % processes:
        raise UsageError(
            f"{algorithm.name}: ptx_rows {config.ptx_rows} cannot be divided over {processes} processes: make it a "
            f"multiple of {processes}"
        )
    if rows * processes != config.batch_rows or rows < config.minibatches or rows % algorithm.group:
        groups = f", groups of {algorithm.group} responses" if algorithm.group > 1 else ""
        raise UsageError(
            f"{algorithm.name}: batch_rows {config.batch_rows} cannot be cut into {processes} processes{groups} and "
            f"{config.minibatches} minibatches"
        )
    return rows
