"""LaDi-RL: reinforcement learning of the latent trajectories and of the texts read from them (arXiv:2602.01705).

Per question, R latent trajectories are drawn by the SDE sampler and M texts are decoded from each. A latent's utility
is the mean reward of its texts; latents compete with the question's other latents, texts with the texts of the same
latent. Both are improved by one clipped surrogate:

    L = alpha L_latent + (1 - alpha) L_text

A latent's log-density is the papers', of its denoising transitions, or a bound from its flow-matching loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.draws import Source, child, normal, shared, uniform
from ladi.flow.guidance import Bandwidth, relative_strength
from ladi.flow.logprob import Reduction, gaussian_kl, gaussian_log_prob
from ladi.flow.path import mix, velocity_target
from ladi.flow.solver import noisy_steps, sde_transition
from ladi.flow.times import EDGE
from ladi.losses import masked_mean
from ladi.metrics.diversity import mean_pairwise_distance
from ladi.models.backbone import compute_again
from ladi.models.decoding import continue_ids, expand, select_rows
from ladi.models.generation import LATENTS, TEXTS, LatentPaths, SampleConfig, finished_prefix, generate_latents
from ladi.models.reasoner import Context, LatentReasoner
from ladi.rl.objective import (
    Normaliser,
    RewardScale,
    SurrogateConfig,
    Total,
    alone,
    group_advantages,
    reward_statistics,
    surrogate,
    text_advantages,
)
from ladi.tasks.base import Problem
from ladi.train import loop
from ladi.train.data import DataConfig, begin
from ladi.train.policy import (
    OldLogProbs,
    Texts,
    optimise,
    reference_of,
    score,
    text_entropy,
    text_log_probs,
    text_statistics,
    text_surrogate,
    zero_loss,
)
from ladi.train.rewards import RewardConfig, RewardFunction, Rewards

DRAWS = 3
"""Purpose of random numbers, beside LATENTS and TEXTS."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Rollouts and the objective."""

    num_latents: int = 16
    """R: latent trajectories of a question."""
    texts_per_latent: int = 5
    """M: texts decoded from each latent."""
    num_steps: int = 10
    """K: denoising steps of a block in rollouts."""
    noise_level: float = 0.7
    """a: noise of the SDE."""
    sde_window: tuple[int, int] | None = None
    """(first, last + 1): only these denoising steps are stochastic and trained; None means all but the last."""
    rollout_texts: int = 0
    """Texts decoded at a time in a rollout, which bounds the memory of their keys and values; 0 means all."""
    replay_steps: int = 0
    """Stochastic steps, drawn anew for each rollout, that the latent loss replays; 0 means all. Of the density
    `flow_loss`, draws of time and noise; 0 means `num_steps`."""
    replay_copies: int = 0
    """Noisy copies (a latent of a question at a denoising step) per velocity pass of a replay, recomputed in the
    backward pass to save memory; 0 means all at once, kept."""
    replay_texts: int = 0
    """Texts per pass of a replay, recomputed in the backward pass to save memory; 0 means all at once, kept."""
    initial_noise: float = 1.0
    guidance: float = 0.0
    """gamma_max of the repulsion in rollouts; its push is the same constant in the old and the new means."""
    bandwidth: Bandwidth = "median"
    temperature: float = 1.0
    """Of the texts."""
    density: Literal["transitions", "flow_loss"] = "transitions"
    """What stands for a latent's log-density. `transitions`: those of its noisy denoising steps (Flow-GRPO,
    arXiv:2505.05470), as in LaDi-RL. `flow_loss`: minus half the flow-matching loss of its finished blocks (Flow Policy
    Optimization, arXiv:2507.21053), whatever sampler drew them."""
    alpha: float = 0.9
    """Weight of the latent loss; 1 trains latents only, 0 texts only."""
    text_advantage: Literal["within_latent", "pooled"] = "within_latent"
    """Compare a text with those of its own latent, or with all of the question's."""
    scale_rewards: RewardScale = "group"
    advantage_clamp: float = 5.0
    beta: float = 0.0
    """Weight of the KL divergence from the starting policy, of transitions and of tokens."""
    num_iterations: int = 1
    """Optimizer steps per rollout."""
    mask_truncated_completions: bool = False
    """Leave texts that were cut at the length limit out of the text loss."""
    log_prob_reduction: Reduction = "mean"
    """Of a transition's log-density over the numbers of a block. The clip range of `latent` is meant for `sum` and is
    divided by their number for `mean`."""

    def __post_init__(self):
        if self.num_latents < 1 or self.texts_per_latent < 1 or self.num_latents * self.texts_per_latent < 2:
            raise ValueError(
                f"need at least 2 texts per question, got num_latents {self.num_latents} x texts_per_latent "
                f"{self.texts_per_latent}"
            )
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")
        if self.alpha > 0 and self.num_latents < 2:
            raise ValueError("a latent is compared with the question's others: num_latents 1 needs alpha 0")
        by_transitions = self.alpha > 0 and self.density == "transitions"
        if by_transitions and (self.noise_level <= 0 or self.num_steps < 2):
            raise ValueError(
                f"latents are trained through the sampler's noise: alpha {self.alpha} needs noise_level > 0 and "
                f"num_steps >= 2, got {self.noise_level} and {self.num_steps}; or set alpha 0 or density flow_loss"
            )
        if self.alpha < 1 and self.temperature <= 0:
            raise ValueError("texts are trained by sampling: alpha below 1 needs temperature > 0; or set alpha 1")
        if self.alpha < 1 and self.texts_per_latent == 1 and self.text_advantage == "within_latent":
            raise ValueError(
                f"a latent with one text has nothing to compare it with: alpha {self.alpha} with texts_per_latent 1 "
                "needs text_advantage pooled; or set alpha 1 (latents only), or more texts_per_latent"
            )
        if self.temperature <= 0 and self.texts_per_latent > 1:
            raise ValueError("greedy texts of one latent are all alike: temperature 0 needs texts_per_latent 1")
        loop.at_least(1, self, "num_iterations")
        loop.at_least(0, self, "rollout_texts", "replay_steps", "replay_copies", "replay_texts", "beta")
        if by_transitions:
            available = sum(level > 0 for level in self.noise_levels())
            if available == 0:
                raise ValueError(
                    f"sde_window {self.sde_window} holds only the last of {self.num_steps} steps, which is never "
                    f"stochastic: alpha {self.alpha} needs an earlier step in it; or set alpha 0"
                )
            if self.replay_steps > available:
                raise ValueError(f"replay_steps is {self.replay_steps}, but only {available} steps are stochastic")

    def sampler(self) -> SampleConfig:
        """How rollouts are drawn."""
        return SampleConfig(
            num_steps=self.num_steps,
            initial_noise=self.initial_noise,
            guidance=self.guidance,
            bandwidth=self.bandwidth,
            noise_level=self.noise_level,
            sde_window=self.sde_window,
            temperature=self.temperature,
        )

    def noise_levels(self) -> list[float]:
        """The noise level of each step; 0 where a step has no density."""
        return noisy_steps(self.sampler().times(), self.noise_level, self.sde_window)

    def num_replayed(self) -> int:
        """Velocities of a block that the latent loss takes: of its noisy steps, or of noisy forms drawn anew."""
        most = self.num_steps if self.density == "flow_loss" else sum(level > 0 for level in self.noise_levels())
        return self.replay_steps or most


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `rl`; `loop.batch_size` counts questions."""

    out_dir: Path
    data: DataConfig
    model_dir: Path
    """Saved reasoner to start from; a path that starts with assets/ names one that came with ladi."""
    lora_rank: int = 0
    """Above 0, train LoRA of this rank instead of all weights of the language model; the heads train in full."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    latent: SurrogateConfig = field(default_factory=SurrogateConfig)
    """Surrogate of trajectories; elements are transitions."""
    text: SurrogateConfig = field(default_factory=SurrogateConfig)
    """Surrogate of texts; elements are tokens."""
    loop: loop.LoopConfig


@dataclass(frozen=True)
class Draws:
    """Times and noise of the noisy forms in which the present weights are asked for a finished block."""

    times: Float[Tensor, "P R K S"]
    noise: Float[Tensor, "P R K S N D"]

    @classmethod
    def of(cls, paths: LatentPaths, count: int, source: Source) -> "Draws":
        """`count` for each block: one uniform time in each of as many equal parts of (0, 1), and noise."""
        lead, size = (*paths.latents.shape[:2], count), paths.latents.shape[3:]
        times, noise = [], []
        for _ in range(paths.latents.shape[2]):  # block by block, so that further ones change none before
            times.append((torch.arange(count) + uniform(lead, source)) / count)
            noise.append(normal((*lead, *size), source))
        device = paths.latents.device
        return cls(torch.stack(times, 2).clamp(EDGE, 1 - EDGE).to(device), torch.stack(noise, 2).to(device))

    def rows(self, rows: Tensor) -> "Draws":
        """Those of some questions."""
        return Draws(self.times[rows], self.noise[rows])


@dataclass(frozen=True)
class Rollout:
    """Trajectories and texts of P questions, judged, with what the update needs of the sampling policy."""

    questions: list[str]
    paths: LatentPaths
    texts: Texts
    latent_advantages: Float[Tensor, "P R"]
    text_advantages: Float[Tensor, "P R M"]
    steps: Int[Tensor, " S"]
    """Which denoising steps are replayed, or which `draws`."""
    draws: Draws | None
    """Of the density `flow_loss`."""
    num_tokens: int
    """Text tokens of the whole rollout that count."""
    num_transitions: int
    """Replayed transitions, or draws, of the whole rollout."""
    num_questions: int
    """Questions of the whole rollout."""
    metrics: dict[str, Tensor]

    def rows(self, rows: Tensor) -> "Rollout":
        """The rollout of some questions, with the counts of the whole."""
        return Rollout(
            questions=[self.questions[i] for i in rows.tolist()],
            paths=path_rows(self.paths, rows),
            texts=self.texts.rows(rows),
            latent_advantages=self.latent_advantages[rows],
            text_advantages=self.text_advantages[rows],
            draws=None if self.draws is None else self.draws.rows(rows),
            **{name: getattr(self, name) for name in ("steps", *COUNTS)},
        )


COUNTS = ("num_tokens", "num_transitions", "num_questions", "metrics")


def path_rows(paths: LatentPaths, rows: Tensor) -> LatentPaths:
    """The trajectories of some questions."""
    values = {f.name: getattr(paths, f.name) for f in fields(paths)}
    for name in ("states", "means", "pushes", "num_blocks"):
        if values[name] is not None:
            values[name] = values[name][rows]
    return LatentPaths(**values)


def sample_rollout(
    reasoner: LatentReasoner,
    problems: Sequence[Problem],
    rewards: Rewards,
    config: Config,
    source: Source,
    total: Total = alone,
) -> Rollout:
    """Draw, decode and judge R x M texts for each problem, by the present weights."""
    policy = config.policy
    questions = [problem.question for problem in problems]
    with torch.no_grad():
        paths = generate_latents(reasoner, questions, policy.num_latents, policy.sampler(), child(source, LATENTS))
        prefix, _ = finished_prefix(reasoner, questions, paths.latents, paths.num_blocks)
        sampled = continue_ids(
            reasoner.backbone,
            prefix,
            reasoner.config.max_answer_tokens,
            policy.temperature,
            child(source, TEXTS),
            repeats=policy.texts_per_latent,
            at_once=policy.rollout_texts,
        )
        shape = (policy.num_latents, policy.texts_per_latent)
        texts = score(reasoner.backbone, rewards, problems, sampled, shape, whole=False)
    draws, steps = None, torch.arange(policy.num_replayed())
    if policy.density == "flow_loss":
        draws = Draws.of(paths, len(steps), child(source, DRAWS))
    else:
        noisy = torch.tensor([k for k, level in enumerate(policy.noise_levels()) if level > 0], dtype=torch.long)
        steps = noisy[torch.randperm(len(noisy), generator=shared(source))[: len(steps)]].sort().values
    counted = texts.counted(policy.mask_truncated_completions)
    utilities = texts.rewards.mean(2)
    kind, scale, clamp = policy.text_advantage, policy.scale_rewards, policy.advantage_clamp
    return Rollout(
        questions=questions,
        paths=paths,
        texts=texts,
        latent_advantages=group_advantages(utilities, scale, clamp, total),
        text_advantages=text_advantages(texts.rewards, kind, scale, clamp, total),
        steps=steps,
        draws=draws,
        num_tokens=int(total(counted.sum())),
        num_transitions=int(total(paths.num_blocks.sum())) * len(steps),
        num_questions=int(total(torch.tensor(len(problems), device=counted.device))),
        metrics={
            **reward_statistics(texts.rewards),
            **text_statistics(texts),
            **text_entropy(sampled, total),
            **latent_statistics(paths),
        },
    )


def latent_statistics(paths: LatentPaths) -> dict[str, Tensor]:
    """Spread of a question's finished first blocks and entropy of a noisy transition, both per number of a block, and
    the length of the repulsion's push beside that of the drift, mean over real blocks and steps.

    The entropy is the noise's, a constant of the grid and the noise level; whether latents collapse, the spread tells.
    """
    first = paths.latents[:, :, 0]
    stats = {}
    if first.shape[1] > 1:
        stats["latent/spread"] = mean_pairwise_distance(first).mean() / first[0, 0].numel() ** 0.5
    if paths.pushes is not None:
        drift = paths.means - paths.pushes - paths.states[:, :, :, :-1]
        strength = relative_strength(paths.pushes, drift)  # (P, R, K, S)
        real = torch.arange(strength.shape[2], device=strength.device) < paths.num_blocks[..., None]
        stats["latent/push_to_drift"] = masked_mean(strength, real[..., None].expand_as(strength))
    noisy = paths.stds[paths.stds > 0]
    if len(noisy):
        stats["latent/transition_entropy"] = (0.5 * torch.log(2 * torch.pi * torch.e * noisy.square())).mean()
    return stats


# ---- replay: the same states under the present weights ------------------------------------------------------------


@dataclass(frozen=True)
class Transitions:
    """Replayed steps of one block, or draws: log-densities of what was sampled, and means."""

    log_probs: Float[Tensor, "P R S"]
    means: Float[Tensor, "P R S N D"]
    stds: Float[Tensor, "P R S"]


def replay_block(
    reasoner: LatentReasoner, context: Context, paths: LatentPaths, block: int, steps: Int[Tensor, " S"], policy
) -> Transitions:
    """Densities of one block's sampled transitions; all R * S states of a question share its context in one pass."""
    x_t, x_next = paths.states[:, :, block, steps], paths.states[:, :, block, steps + 1]
    lead = x_t.shape[:3]
    t, t_next = (paths.times[k].to(x_t.device).expand(lead) for k in (steps, steps + 1))
    v = packed_velocity(reasoner, context, x_t, t, policy.replay_copies)
    mean, std = sde_transition(x_t, v, t, t_next, policy.noise_level)
    if paths.pushes is not None:
        mean = mean + paths.pushes[:, :, block, steps]
    return Transitions(gaussian_log_prob(x_next, mean, std, policy.log_prob_reduction), mean, std[..., 0, 0])


def replay_draws(
    reasoner: LatentReasoner, context: Context, rollout: Rollout, block: int, policy: PolicyConfig
) -> Transitions:
    """Minus half the flow-matching loss of one block at its draws, which is, up to a constant, the log-density of the
    loss's target under a Gaussian of unit variance around the velocity.
    """
    assert rollout.draws is not None
    t, noise = rollout.draws.times[:, :, block], rollout.draws.noise[:, :, block]
    x0 = rollout.paths.latents[:, :, block, None].expand_as(noise)
    v = packed_velocity(reasoner, context, mix(x0, noise, t), t, policy.replay_copies)
    log_probs = gaussian_log_prob(velocity_target(x0, noise), v, 1.0, policy.log_prob_reduction)
    return Transitions(log_probs, v, torch.ones_like(t))


def packed_velocity(
    reasoner: LatentReasoner,
    context: Context,
    x_t: Float[Tensor, "P R S N D"],
    t: Float[Tensor, "P R S"],
    copies: int,
) -> Float[Tensor, "P R S N D"]:
    """Velocities of all R * S states of a question, whose trajectories share its context or have one each, in passes of
    at most `copies` copies in all rows, recomputed in backward; 0 means one pass, kept.
    """
    num_rows = len(context.position)
    x, times = x_t.reshape(num_rows, -1, *x_t.shape[-2:]), t.reshape(num_rows, -1)
    copies_of_row = x.shape[1]
    if not copies or num_rows * copies_of_row <= copies:
        return reasoner.velocity(context, x, times).view_as(x_t)

    def of_rows(rows: slice) -> Tensor:
        def one(x, t):
            return reasoner.velocity(context.rows(rows), x, t)

        pieces = zip(x[rows].split(copies, 1), times[rows].split(copies, 1), strict=True)
        return torch.cat([compute_again(one, *piece) for piece in pieces], dim=1)

    step = max(1, copies // copies_of_row)
    return torch.cat([of_rows(slice(row, row + step)) for row in range(0, num_rows, step)]).view_as(x_t)


@dataclass(frozen=True)
class Replay:
    """A rollout under the present weights; `texts` (log-probabilities) is None where none are asked for."""

    blocks: list[Transitions]
    texts: Float[Tensor, "S T"] | None


def replay(
    reasoner: LatentReasoner, rollout: Rollout, policy: PolicyConfig, heard: Bool[Tensor, "P R"] | None = None
) -> Replay:
    """Walk the sequence once: velocities of each block in its own context, then the texts of the latents that are
    `heard`; by default those of all, unless alpha is 1.
    """
    paths, texts = rollout.paths, rollout.texts
    num_latents, num_blocks = paths.latents.shape[1:3]
    if heard is None:
        heard = torch.full_like(texts.finished[:, :, 0], policy.alpha < 1)
    wants_latents, wants_texts = policy.alpha > 0, bool(heard.any())
    chosen = heard.flatten().nonzero().squeeze(1)
    prefix = reasoner.open(reasoner.backbone.tokenize(rollout.questions, opening=True))
    blocks = []
    for block in range(num_blocks):
        if wants_latents:
            context = reasoner.context(prefix)
            if rollout.draws is None:
                blocks.append(replay_block(reasoner, context, paths, block, rollout.steps, policy))
            else:
                blocks.append(replay_draws(reasoner, context, rollout, block, policy))
        if block + 1 == num_blocks and not wants_texts:
            break
        if block == 0:
            prefix = expand(prefix, num_latents)
        z, running = paths.latents[:, :, block].flatten(0, 1), (paths.num_blocks > block).flatten()
        if block + 1 == num_blocks and len(chosen) < len(z):  # the last block is read for texts only
            prefix, z, running = select_rows(prefix, chosen), z[chosen], running[chosen]
        prefix, _ = reasoner.add_block(prefix, z, running)
    if not wants_texts:
        return Replay(blocks, None)
    ids, valid = texts.ids[heard].flatten(0, 1), texts.valid[heard].flatten(0, 1)
    backbone, prefix = reasoner.backbone, reasoner.close(prefix)
    return Replay(blocks, text_log_probs(backbone, prefix, ids, valid, policy.temperature, policy.replay_texts))


# ---- the loss -----------------------------------------------------------------------------------------------------


def loss(
    reasoner: LatentReasoner,
    rollout: Rollout,
    config: Config,
    reference: LatentReasoner | None = None,
    old: OldLogProbs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L of a micro-batch of questions, and its terms for the log; without `old`, on policy.

    Questions in which no latent and no text has an advantage have no gradient and are left out of the replay, and so
    are the texts of a latent that all have the same reward; though not out of the counts that sums are divided by.
    """
    policy, old = config.policy, old or OldLogProbs()
    terms = dict(rollout.metrics)
    share = len(rollout.questions) / rollout.num_questions  # loop.run averages over micro-batches
    has_latent = (rollout.latent_advantages != 0).any(1) & (policy.alpha > 0)
    has_text = (rollout.text_advantages != 0).flatten(1).any(1) & (policy.alpha < 1)
    kept = (has_latent | has_text).nonzero().squeeze(1) if policy.beta == 0 else torch.arange(len(has_text))
    num_sequences = len(rollout.questions) * policy.num_latents
    if len(kept) == 0:
        return zero_loss(reasoner), terms
    rollout = rollout.rows(kept.cpu())
    heard = ((rollout.text_advantages != 0).any(2) | (policy.beta > 0)) & (policy.alpha < 1)
    now = replay(reasoner, rollout, policy, heard)
    then = None
    if reference is not None:
        with torch.no_grad():
            then = replay(reference, rollout, policy, heard)
    value = torch.zeros((), device=rollout.latent_advantages.device)
    if policy.alpha > 0:
        longest = reasoner.config.max_blocks * len(rollout.steps)
        size = Normaliser(num_sequences, share * rollout.num_transitions, longest)
        latent_loss, stats = latent_term(rollout, now, then, old, config, size)
        value = value + policy.alpha * latent_loss
        terms |= {"loss/latent": latent_loss.detach(), **{f"latent/{k}": v for k, v in stats.items()}}
    if now.texts is not None:
        num_texts = num_sequences * policy.texts_per_latent
        size = Normaliser(num_texts, share * rollout.num_tokens, reasoner.config.max_answer_tokens)
        text_loss, stats = text_surrogate(
            rollout.texts.behind(heard),
            now.texts,
            old,
            rollout.text_advantages[heard],
            config.text,
            size,
            policy.mask_truncated_completions,
            None if then is None else then.texts,
            policy.beta,
        )
        value = value + (1 - policy.alpha) * text_loss
        terms |= stats
    return value, terms


def latent_term(rollout: Rollout, now: Replay, then: Replay | None, old: OldLogProbs, config: Config, size: Normaliser):
    """Surrogate of the trajectories: elements are the replayed transitions, or draws, of all real blocks."""
    policy, paths = config.policy, rollout.paths
    dims = paths.latents[0, 0, 0].numel() if policy.log_prob_reduction == "mean" else 1
    new = torch.cat([block.log_probs for block in now.blocks], dim=2)
    real = torch.arange(len(now.blocks), device=new.device) < paths.num_blocks[..., None]
    mask = real.repeat_interleave(len(rollout.steps), dim=2)
    kl = None
    if then is not None:
        pairs = zip(now.blocks, then.blocks, strict=True)
        kl = torch.cat([transition_kl(*pair, policy.log_prob_reduction) for pair in pairs], dim=2).flatten(0, 1)
    return surrogate(
        new.flatten(0, 1),
        old.of("latents", new).flatten(0, 1),
        rollout.latent_advantages.flatten(),
        mask.flatten(0, 1),
        config.latent.per_number(dims),
        size,
        kl,
        policy.beta,
    )


def transition_kl(a: Transitions, b: Transitions, reduction: Reduction) -> Float[Tensor, "P R S"]:
    """KL of each replayed transition from the reference's; Flow-GRPO's closed form in v, here through the means."""
    stds = a.stds[..., None, None]
    return gaussian_kl(a.means, stds, b.means, stds, reduction)


def main(config: Config, functions: Sequence[RewardFunction] = (), on_log: loop.OnLog | None = None) -> Path:
    """Train and save `final/`, VAE included; returns its path. `functions` are rewards beside the configured
    ones; `on_log(step, metrics)` replaces the progress on the terminal.
    """
    run_dir = begin(config)
    rewards = Rewards(config.reward, config.data.task, functions)
    reasoner = LatentReasoner.from_pretrained(config.model_dir).train()
    reference = reference_of(reasoner, config.policy.beta)
    if config.lora_rank:
        reasoner.backbone.add_lora(config.lora_rank, config.loop.seed)
    reasoner = optimise(
        config,
        run_dir,
        reasoner,
        lambda problems, source, total: sample_rollout(reasoner, problems, rewards, config, source, total),
        lambda model, rollout, old: loss(model, rollout, config, reference, old),
        label="rl",
        texts_per_question=config.policy.num_latents * config.policy.texts_per_latent,
        on_log=on_log,
    )
    return loop.save_final(reasoner, run_dir)
