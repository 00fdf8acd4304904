"""Token-level GRPO (arXiv:2402.03300) on the autoregressive model: the baseline, on the same loop and objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ladi.arrays import Float, Tensor
from ladi.draws import Source
from ladi.models.backbone import Backbone
from ladi.models.decoding import continue_ids, open_question
from ladi.rl.objective import (
    Normaliser,
    RewardScale,
    SurrogateConfig,
    Total,
    alone,
    group_advantages,
    reward_statistics,
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


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Rollouts and the objective."""

    num_generations: int = 80
    """Texts of a question."""
    temperature: float = 1.0
    max_completion_length: int = 64
    scale_rewards: RewardScale = "group"
    advantage_clamp: float = 5.0
    beta: float = 0.0
    """Weight of the token KL from the starting policy."""
    num_iterations: int = 1
    """Optimizer steps per rollout."""
    mask_truncated_completions: bool = False
    rollout_texts: int = 0
    """Texts decoded at a time in a rollout, which bounds the memory of their keys and values; 0 means all."""
    replay_texts: int = 0
    """Texts per pass of a replay, recomputed in the backward pass to save memory; 0 means all at once, kept."""

    def __post_init__(self):
        if self.num_generations < 2:
            raise ValueError(f"a text is compared with its group: num_generations must be >= 2: {self.num_generations}")
        if self.temperature <= 0:
            raise ValueError(f"texts are trained by sampling: temperature must be positive, got {self.temperature}")
        loop.at_least(1, self, "num_iterations", "max_completion_length")
        loop.at_least(0, self, "beta", "rollout_texts", "replay_texts")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `grpo`; `loop.batch_size` counts questions."""

    out_dir: Path
    data: DataConfig
    model_dir: Path
    """Saved language model of the stage `sft` to start from; assets/... names one that came with ladi."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    text: SurrogateConfig = field(default_factory=SurrogateConfig)
    loop: loop.LoopConfig


@dataclass(frozen=True)
class Rollout:
    """Texts of P questions (R = 1), judged."""

    questions: list[str]
    texts: Texts
    advantages: Float[Tensor, "P M"]
    num_tokens: int
    """Tokens of the whole rollout that count."""
    num_questions: int
    """Questions of the whole rollout."""
    metrics: dict[str, Tensor]

    def rows(self, rows: Tensor) -> "Rollout":
        """The rollout of some questions, with the counts of the whole."""
        return Rollout(
            questions=[self.questions[i] for i in rows.tolist()],
            texts=self.texts.rows(rows),
            advantages=self.advantages[rows],
            num_tokens=self.num_tokens,
            num_questions=self.num_questions,
            metrics=self.metrics,
        )


def sample_rollout(
    backbone: Backbone,
    problems: Sequence[Problem],
    rewards: Rewards,
    config: Config,
    source: Source,
    total: Total = alone,
) -> Rollout:
    """Draw and judge a group of texts for each problem, by the present weights."""
    policy = config.policy
    questions = [problem.question for problem in problems]
    with torch.no_grad():
        prefix = open_question(backbone, questions, backbone.soa)
        sampled = continue_ids(
            backbone,
            prefix,
            policy.max_completion_length,
            policy.temperature,
            source,
            repeats=policy.num_generations,
            at_once=policy.rollout_texts,
        )
        texts = score(backbone, rewards, problems, sampled, (1, policy.num_generations), whole=True)
    counted = texts.counted(policy.mask_truncated_completions)
    return Rollout(
        questions=questions,
        texts=texts,
        advantages=group_advantages(texts.rewards.flatten(1), policy.scale_rewards, policy.advantage_clamp, total),
        num_tokens=int(total(counted.sum())),
        num_questions=int(total(torch.tensor(len(problems), device=counted.device))),
        metrics={**reward_statistics(texts.rewards), **text_statistics(texts), **text_entropy(sampled, total)},
    )


def replay(backbone: Backbone, rollout: Rollout, policy: PolicyConfig) -> Float[Tensor, "S T"]:
    """Log-probabilities (S = P * M) of the sampled tokens under the present weights."""
    ids, valid = rollout.texts.ids.flatten(0, 2), rollout.texts.valid.flatten(0, 2)
    prefix = open_question(backbone, rollout.questions, backbone.soa)
    return text_log_probs(backbone, prefix, ids, valid, policy.temperature, policy.replay_texts)


def loss(
    backbone: Backbone,
    rollout: Rollout,
    config: Config,
    reference: Backbone | None = None,
    old: OldLogProbs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate of a micro-batch of questions, and its terms for the log; without `old`, on policy.

    Questions whose texts all have the same reward have no gradient and are left out of the replay, though not out of
    the counts that sums are divided by.
    """
    policy = config.policy
    terms = dict(rollout.metrics)
    size = Normaliser(
        num_sequences=len(rollout.questions) * policy.num_generations,
        num_elements=rollout.num_tokens * len(rollout.questions) / rollout.num_questions,
        max_length=policy.max_completion_length,
    )
    kept = (rollout.advantages != 0).any(1) | (policy.beta > 0)
    if not bool(kept.any()):
        return zero_loss(backbone), terms
    rollout = rollout.rows(kept.nonzero().squeeze(1).cpu())
    now, then = replay(backbone, rollout, policy), None
    if reference is not None:
        with torch.no_grad():
            then = replay(reference, rollout, policy)
    value, stats = text_surrogate(
        rollout.texts,
        now,
        old or OldLogProbs(),
        rollout.advantages,
        config.text,
        size,
        policy.mask_truncated_completions,
        then,
        policy.beta,
    )
    return value, {**terms, **stats}


def main(config: Config, functions: Sequence[RewardFunction] = (), on_log: loop.OnLog | None = None) -> Path:
    """Train and save `final/`; returns its path. `functions` are rewards beside the configured
    ones; `on_log(step, metrics)` replaces the progress on the terminal.
    """
    run_dir = begin(config)
    rewards = Rewards(config.reward, config.data.task, functions)
    backbone = Backbone.from_pretrained(config.model_dir).train()
    reference = reference_of(backbone, config.policy.beta)
    backbone = optimise(
        config,
        run_dir,
        backbone,
        lambda problems, source, total: sample_rollout(backbone, problems, rewards, config, source, total),
        lambda model, rollout, old: loss(model, rollout, config, reference, old),
        label="grpo",
        texts_per_question=config.policy.num_generations,
        on_log=on_log,
    )
    return loop.save_final(backbone, run_dir)
