"""DLR: generate, filter, decode, reward, optimise (arXiv:2601.17275, section 3 and algorithm 1).

Per question the assistant draws G latent trajectories; a filter hands K of them to the frozen main model, which
decodes each once; their rewards give group-relative advantages (equations 1-4), and

    L = L_GRPO + gamma L_cl + value_weight L_value (+ text_weight L_text)        (equation 6)

trains assistant and projection alone. L_GRPO is the clipped surrogate of `rl/objective.py` over the trajectories'
densities, L_cl the contrastive term over all G, L_value fits the filter's regressor to the decoded rewards.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.draws import Source, child, normal, uniform
from ladi.flow.logprob import Reduction, gaussian_kl, gaussian_log_prob
from ladi.metrics.diversity import mean_pairwise_distance
from ladi.models.assistant import LatentAssistant, LatentPolicy, MainCost
from ladi.models.decoding import Prefix, expand
from ladi.models.generation import LATENTS, TEXTS
from ladi.rl.contrastive import Similarity, contrastive_loss
from ladi.rl.objective import (
    Normaliser,
    RewardScale,
    SurrogateConfig,
    Total,
    alone,
    group_advantages,
    reward_statistics,
    surrogate,
)
from ladi.tasks.base import Problem
from ladi.train import loop
from ladi.train.data import DataConfig, begin
from ladi.train.optim import Treatment
from ladi.train.policy import (
    OldLogProbs,
    Texts,
    optimise,
    read_behind,
    reference_of,
    score,
    text_entropy,
    text_log_probs,
    text_statistics,
    text_surrogate,
)
from ladi.train.rewards import RewardConfig, RewardFunction, Rewards

Filter = Literal["none", "random", "value"]

FILTER = 3
"""Purpose of random numbers, beside LATENTS and TEXTS."""

TAGS = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Rollouts, the filter, rewards and the objective."""

    num_generations: int = 64
    """G: latent trajectories of a question."""
    num_decoded: int = 64
    """K: those that the main model decodes."""
    filter: Filter = "none"
    """Which: all, K drawn at random, or the K of which the value head expects most."""
    temperature: float = 0.0
    """Of the main model's texts; 0 is greedy."""
    format_weight: float = 0.0
    """lambda: weight of the format reward, equation 3."""
    format: Literal["finished", "tags"] = "finished"
    """A well-formed text ends by itself within the length limit, or is `<think>...</think><answer>...</answer>`."""
    scale_rewards: RewardScale = "group"
    advantage_clamp: float = 5.0
    beta: float = 0.01
    """Weight of the KL from the starting assistant."""
    gamma: float = 0.1
    """Weight of the contrastive loss."""
    similarity: Similarity = "dot"
    contrastive_temperature: float = 1.0
    contrast: Literal["latent", "projected"] = "latent"
    """What is contrasted: the assistant's latents, or what the main model sees of them (equation 5)."""
    value_weight: float = 1.0
    """Weight of the value head's squared error; it trains whatever the filter."""
    text_weight: float = 0.0
    """Weight of the token surrogate of the sampled texts, which reaches the projection through the main model."""
    mask_truncated_completions: bool = False
    """Leave texts that were cut at the length limit out of the token surrogate."""
    num_iterations: int = 1
    """Optimizer steps per rollout."""
    rollout_texts: int = 0
    """Texts decoded at a time in a rollout, which bounds the memory of their keys and values; 0 means all."""
    replay_trajectories: int = 0
    """Trajectories per pass of a replay, recomputed in the backward pass to save memory; 0 means all at once, kept."""
    log_prob_reduction: Reduction = "sum"
    """Of a latent's log-density, and of the KL, over its D numbers; over the T latents of a trajectory both are means.
    So with `sum` L_GRPO is 1 / T of equation 7's, with `mean` 1 / (T D), the clip range follows, and the other terms of
    the loss weigh as many times more beside it (docs/decisions.md)."""

    def __post_init__(self):
        if not 2 <= self.num_decoded <= self.num_generations:
            raise ValueError(
                f"a trajectory is compared with others: need 2 <= num_decoded <= num_generations, got "
                f"{self.num_decoded} and {self.num_generations}"
            )
        if self.filter == "none" and self.num_decoded != self.num_generations:
            raise ValueError(
                f"filter none decodes all {self.num_generations} trajectories, but num_decoded is {self.num_decoded}; "
                "choose filter random or value, or make them equal"
            )
        if self.text_weight > 0 and self.temperature == 0:
            raise ValueError("texts are trained by sampling: text_weight above 0 needs temperature > 0")
        loop.at_least(0, self, "beta", "gamma", "value_weight", "text_weight", "format_weight", "temperature")
        loop.at_least(0, self, "rollout_texts", "replay_trajectories")
        loop.at_least(1, self, "num_iterations")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `dlr`; `loop.batch_size` counts questions, `loop.optim.lr` is the assistant's."""

    out_dir: Path
    data: DataConfig
    model_dir: Path
    """Saved assistant of the stage `dlr-warmup`."""
    main: str = ""
    """Where the main model lies now; empty: where it lay at the warm start."""
    train_main: bool = False
    """Train the main model too, by the token surrogate (the paper's table 4); its weights are saved then."""
    std: float = 0.0
    """sigma of the policy from here on, to explore more than the warm start did; 0 keeps the warm start's."""
    projection_lr: float = 1e-4
    """Learning rate of the projection."""
    value_lr: float = 1e-3
    """Learning rate of the value head."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    latent: SurrogateConfig = field(default_factory=lambda: SurrogateConfig(importance_sampling_level="sequence"))
    """Surrogate of trajectories (equation 7: one ratio for each); elements are latents."""
    text: SurrogateConfig = field(default_factory=SurrogateConfig)
    """Surrogate of texts; elements are tokens."""
    loop: loop.LoopConfig

    def __post_init__(self):
        if self.train_main and self.policy.text_weight == 0:
            raise ValueError("the main model learns from its texts only: train_main needs policy.text_weight > 0")
        if self.std < 0:
            raise ValueError(f"std is {self.std}; it must be positive, or 0 to keep the warm start's")


@dataclass(frozen=True)
class Rollout:
    """Trajectories of P questions, G each, and the judged texts of K of them."""

    questions: list[str]
    noise: Float[Tensor, "P G T D"]
    latents: Float[Tensor, "P G T D"]
    decoded: Int[Tensor, "P K"]
    """Which trajectories the main model decoded."""
    texts: Texts
    """Of those, one each: R = K, M = 1."""
    advantages: Float[Tensor, "P K"]
    num_tokens: int
    """Text tokens of the whole rollout that count."""
    num_questions: int
    """Questions of the whole rollout."""
    metrics: dict[str, Tensor]

    def rows(self, rows: Tensor) -> "Rollout":
        """The rollout of some questions, with the counts of the whole."""
        return Rollout(
            questions=[self.questions[i] for i in rows.tolist()],
            noise=self.noise[rows],
            latents=self.latents[rows],
            decoded=self.decoded[rows],
            texts=self.texts.rows(rows),
            advantages=self.advantages[rows],
            num_tokens=self.num_tokens,
            num_questions=self.num_questions,
            metrics=self.metrics,
        )

    @property
    def decoded_rows(self) -> Int[Tensor, " S"]:
        """The decoded trajectories among all P * G."""
        first = torch.arange(len(self.decoded), device=self.decoded.device)[:, None] * self.latents.shape[1]
        return (first + self.decoded).flatten()


# ---- generate, filter, decode, reward ---------------------------------------------------------------------------


def choose(kind: Filter, values: Float[Tensor, "P G"], num_decoded: int, source: Source) -> Tensor:
    """Indices (P, K), rising, of the trajectories to decode."""
    num_questions, num_generations = values.shape
    if kind == "none":
        return torch.arange(num_generations, device=values.device).expand(num_questions, -1)
    keys = uniform(values.shape, source).to(values.device) if kind == "random" else values
    return keys.topk(num_decoded, dim=1).indices.sort(dim=1).values


def signed(claims: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """+1 where true, -1 where false."""
    return 2 * claims.float() - 1


def has_tags(text: str) -> bool:
    """Whether the whole text is one `<think>...</think>` and after it one `<answer>...</answer>`."""
    return TAGS.fullmatch(text) is not None and text.count("<think>") == 1 and text.count("<answer>") == 1


def total_rewards(texts: Texts, words: Sequence[str], policy: PolicyConfig, are_users: bool) -> Float[Tensor, "P K 1"]:
    """Equation 3: correctness in {-1, +1} plus lambda format in {-1, +1}; rewards that `are_users` stay as they are."""
    rewards = texts.rewards if are_users else signed(texts.rewards > 0.5)
    if policy.format_weight == 0:
        return rewards
    if policy.format == "tags":
        formed = torch.tensor([has_tags(text) for text in words], device=rewards.device).view_as(texts.finished)
    else:
        formed = texts.finished
    return rewards + policy.format_weight * signed(formed)


def draw_trajectories(
    assistant: LatentAssistant, questions: Sequence[str], num_generations: int, source: Source
) -> tuple[Float[Tensor, "P G T D"], Float[Tensor, "P G T D"], Float[Tensor, "P G"]]:
    """Noise, the latents that the policy makes of it, and what the value head expects of each trajectory."""
    shape = (len(questions), num_generations, assistant.config.num_latents, assistant.config.latent_width)
    noise = normal(shape, source).to(assistant.main.device)
    prefix = expand(assistant.policy.open(questions), num_generations)
    latents = assistant.policy.sample(prefix, noise.flatten(0, 1))
    values = assistant.value(prefix.hidden, latents)
    return noise, latents.view(shape), values.view(shape[:2])


@torch.no_grad()
def sample_rollout(
    assistant: LatentAssistant,
    problems: Sequence[Problem],
    rewards: Rewards,
    config: Config,
    source: Source,
    total: Total = alone,
) -> Rollout:
    """Draw G trajectories for each problem, decode and judge K of them, by the present weights."""
    policy = config.policy
    questions = [problem.question for problem in problems]
    noise, latents, values = draw_trajectories(assistant, questions, policy.num_generations, child(source, LATENTS))
    decoded = choose(policy.filter, values, policy.num_decoded, child(source, FILTER))
    first = torch.arange(len(problems), device=decoded.device)[:, None] * policy.num_generations
    rows = (first + decoded).flatten()
    sampled, cost = assistant.decode(
        questions, latents, rows, policy.temperature, child(source, TEXTS), at_once=policy.rollout_texts
    )
    texts = score(assistant.main, rewards, problems, sampled, (policy.num_decoded, 1), whole=True)
    judged = total_rewards(texts, assistant.main.detokenize(sampled.ids), policy, bool(rewards.functions))
    shared = MainCost(len(questions), assistant.main.tokenize(questions, opening=True)[0].numel())
    return Rollout(
        questions=questions,
        noise=noise,
        latents=latents,
        decoded=decoded,
        texts=replace(texts, rewards=judged),
        advantages=group_advantages(judged.squeeze(2), policy.scale_rewards, policy.advantage_clamp, total),
        num_tokens=int(total(texts.counted(policy.mask_truncated_completions).sum())),
        num_questions=int(total(torch.tensor(len(problems), device=latents.device))),
        metrics={
            **reward_statistics(judged),
            **text_statistics(texts),
            **text_entropy(sampled, total),
            **latent_statistics(latents, assistant.policy.std),
            **cost_statistics(cost, shared, policy, total, latents.device),
            "filter/value_correlation": correlation(values.gather(1, decoded), judged.squeeze(2)),
        },
    )


def latent_statistics(latents: Float[Tensor, "P G T D"], std: Float[Tensor, ""]) -> dict[str, Tensor]:
    """Spread of a question's trajectories and entropy of a latent (both per number), and the policy's std."""
    spread = mean_pairwise_distance(latents).mean() / latents[0, 0].numel() ** 0.5
    entropy = 0.5 * torch.log(2 * torch.pi * torch.e * std.square())
    return {"latent/spread": spread, "latent/transition_entropy": entropy, "latent/std": std.clone()}


def cost_statistics(
    decoding: MainCost, shared: MainCost, policy: PolicyConfig, total: Total, device: torch.device
) -> dict[str, Tensor]:
    """What the main model did for a rollout: `main/forwards` (rows times passes) and `main/tokens` (positions, padding
    included), and their shares of decoding all trajectories,

        share = (Q + R) / (Q + R G / K)

    with Q the pass over the questions (`shared`: as dear however many trajectories follow) and R all behind it,
    prefixes and texts of the K trajectories. The texts of the other G - K are unknown: they count as the decoded ones
    do on average. 1 where all are decoded.
    """
    counts = [[cost.forwards, cost.tokens] for cost in (decoding, shared)]
    decoded, questions = total(torch.tensor(counts, device=device))
    whole = questions + (decoded - questions) * policy.num_generations / policy.num_decoded
    forwards, tokens = decoded
    share, token_share = decoded / whole
    return {
        "main/forwards": forwards,
        "main/tokens": tokens,
        "main/decoded_share": share,
        "main/decoded_token_share": token_share,
    }


def correlation(a: Float[Tensor, "P K"], b: Float[Tensor, "P K"]) -> Float[Tensor, ""]:
    """Pearson's, within questions; 0 where either is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12)


# ---- optimise -----------------------------------------------------------------------------------------------------


def read_trajectories(
    prefix: Prefix, given: Float[Tensor, "P G T D"], read: Callable[[Prefix, Tensor], Tensor], at_once: int
) -> Float[Tensor, "S T D"]:
    """`read(prefix, given)` of all S = P G trajectories, each behind its question among the P of `prefix`; `at_once` as
    in `read_behind`.
    """
    return read_behind(prefix, (given.flatten(0, 1),), lambda *rows: (read(*rows),), at_once)[0]


def loss(
    assistant: LatentAssistant,
    rollout: Rollout,
    config: Config,
    reference: LatentPolicy | None = None,
    old: OldLogProbs | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L of a micro-batch of questions, and its terms for the log; without `old`, on policy."""
    policy, terms, old = config.policy, dict(rollout.metrics), old or OldLogProbs()
    prefix = assistant.policy.open(rollout.questions)
    means = read_trajectories(prefix, rollout.latents, assistant.policy.means, policy.replay_trajectories)
    value, stats = latent_term(assistant, rollout, means, old, config, reference)
    terms |= {"loss/latent": value.detach(), **{f"latent/{k}": v for k, v in stats.items()}}
    if policy.gamma:
        contrast = contrastive_term(assistant, prefix, rollout, policy)
        value = value + policy.gamma * contrast
        terms["loss/contrastive"] = contrast.detach()
    if policy.value_weight:
        rows = rollout.decoded_rows
        states = prefix.hidden.detach()[rows // rollout.latents.shape[1]]
        predicted = assistant.value(states, rollout.latents.flatten(0, 1)[rows])
        error = (predicted - rollout.texts.rewards.flatten()).square().mean()
        value = value + policy.value_weight * error
        terms["loss/value"] = error.detach()
    if policy.text_weight:
        text_loss, stats, cost = text_term(assistant, rollout, old, config)
        value = value + policy.text_weight * text_loss
        terms |= stats
        share = len(rollout.questions) / rollout.num_questions  # the log has the mean over micro-batches
        terms["main/replay_forwards"] = torch.tensor(cost.forwards / share)
        terms["main/replay_tokens"] = torch.tensor(cost.tokens / share)
    return value, terms


def latent_term(
    assistant: LatentAssistant,
    rollout: Rollout,
    means: Tensor,
    old: OldLogProbs,
    config: Config,
    reference: LatentPolicy | None,
):
    """Surrogate of the decoded trajectories (the others have no advantage): elements are their latents."""
    policy, rows = config.policy, rollout.decoded_rows
    latents, means = rollout.latents.flatten(0, 1)[rows], means[rows]
    std, reduction = assistant.policy.std, policy.log_prob_reduction
    new = gaussian_log_prob(latents[:, :, None], means[:, :, None], std, reduction)
    kl = None
    if reference is not None:
        with torch.no_grad():
            prefix = reference.open(rollout.questions)
            reference_means = read_trajectories(prefix, rollout.latents, reference.means, policy.replay_trajectories)
        kl = gaussian_kl(means[:, :, None], std, reference_means[rows][:, :, None], reference.std, reduction)
    num_latents = latents.shape[1]
    # A ratio per latent covers D numbers, one per trajectory all T D; log-probabilities are means over them.
    covered = latents.shape[2] if policy.log_prob_reduction == "mean" else 1
    if config.latent.importance_sampling_level != "token":
        covered *= num_latents
    size = Normaliser(len(rows), len(rows) * num_latents, num_latents)
    mask = torch.ones_like(new, dtype=torch.bool)
    clip = config.latent.per_number(covered)
    return surrogate(new, old.of("latents", new), rollout.advantages.flatten(), mask, clip, size, kl, policy.beta)


def contrastive_term(assistant: LatentAssistant, prefix: Prefix, rollout: Rollout, policy: PolicyConfig) -> Tensor:
    """Equation 8 over all G trajectories, redrawn behind `prefix` by the present weights from the same noise, with its
    gradient.
    """
    latents = read_trajectories(prefix, rollout.noise, assistant.policy.sample, policy.replay_trajectories)
    if policy.contrast == "projected":
        latents = assistant.projection(latents.to(assistant.projection.weight.dtype)).float()
    latents = latents.unflatten(0, rollout.latents.shape[:2])
    return contrastive_loss(latents, policy.similarity, policy.contrastive_temperature)


def text_term(assistant: LatentAssistant, rollout: Rollout, old: OldLogProbs, config: Config):
    """Surrogate of the main model's sampled texts, with gradients through it into the projection; what to log; and what
    the main model's passes forward cost.
    """
    policy, texts = config.policy, rollout.texts
    prefix, cost = assistant.main_prefix(rollout.questions, rollout.latents, rollout.decoded_rows)
    ids, valid = texts.ids.flatten(0, 2), texts.valid.flatten(0, 2)
    new = text_log_probs(assistant.main, prefix, ids, valid, policy.temperature, policy.replay_trajectories)
    share = len(rollout.questions) / rollout.num_questions  # loop.run averages over micro-batches
    size = Normaliser(len(ids), share * rollout.num_tokens, assistant.config.max_answer_tokens)
    masked = policy.mask_truncated_completions
    value, stats = text_surrogate(texts, new, old, rollout.advantages, config.text, size, masked)
    return value, stats, cost + MainCost(len(ids), ids[:, :-1].numel())  # a text's last token is not read


def treatment(config: Config) -> Treatment:
    """The paper's learning rates by part; only the projection's gradient is clipped."""
    lr = config.loop.optim.lr
    scales = {"projection.": config.projection_lr / lr, "value.": config.value_lr / lr}
    return Treatment(
        lr_scale=lambda name: next((scale for part, scale in scales.items() if name.startswith(part)), 1.0),
        is_clipped=lambda name: name.startswith("projection."),
    )


def main(config: Config, functions: Sequence[RewardFunction] = (), on_log: loop.OnLog | None = None) -> Path:
    """Train and save `final/` (assistant and projection); returns its path. `functions` are rewards beside the
    configured ones; `on_log(step, metrics)` replaces the progress on the terminal.
    """
    run_dir = begin(config)
    rewards = Rewards(config.reward, config.data.task, functions)
    assistant = LatentAssistant.from_pretrained(config.model_dir, config.main).train()
    if config.train_main and assistant.main.lm.dtype != torch.float32:
        raise ValueError(
            f"train_main needs a main model in float32, for small steps vanish in bfloat16, which {config.model_dir} "
            "was made with; warm up again with --main-dtype float32"
        )
    if config.std:
        assistant.policy.log_std.data.fill_(math.log(config.std))
    reference = reference_of(assistant.policy, config.policy.beta)
    assistant.main.requires_grad_(config.train_main)
    assistant = optimise(
        config,
        run_dir,
        assistant,
        lambda problems, source, total: sample_rollout(assistant, problems, rewards, config, source, total),
        lambda model, rollout, old: loss(model, rollout, config, reference, old),
        label="dlr",
        texts_per_question=config.policy.num_decoded,
        on_log=on_log,
        treatment=treatment(config),
    )
    return loop.save_final(assistant, run_dir)
