"""Warm start of DLR: the assistant's latents choose among the solutions that the frozen main model then writes.

The paper is silent on how a projection into an untouched language model begins. Here as a conditional VAE
(arXiv:1312.6114) whose decoder is the frozen main model and whose prior is the policy: of a question q and its worked
solution y an encoder, which is thrown away afterwards, makes q(z | q, y), and

    L = -log p_main(y | q, z) + beta KL(q(z | q, y) || policy(z | q)),    z ~ q(z | q, y)

trains encoder, projection and policy; the KL of a trajectory is that of its latents, each after those drawn before.
Latents come to say what the question leaves open, so the policy's noise decides between solutions, which is what
reinforcement learning needs; the likelihood of y at the policy's own means teaches the main model to ignore that noise.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ladi.arrays import Bool, Float, Tensor
from ladi.flow.logprob import gaussian_kl
from ladi.inference.text import alphabet, sft_target
from ladi.losses import token_log_probs
from ladi.models.assistant import AssistantConfig, LatentAssistant, load_main
from ladi.models.backbone import Backbone, BackboneConfig, Dtype
from ladi.models.decoding import append
from ladi.models.vae import Posterior, read_posterior
from ladi.train import loop
from ladi.train.data import DataConfig, Examples, ProblemBatches, Some, Tokens, ValidationConfig, begin, tokenize_pairs
from ladi.train.vae import risen


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stage `dlr-warmup`."""

    out_dir: Path
    data: DataConfig
    main: str
    """Folder or hub name of the main model, which stays frozen; assets/... names one that came with ladi."""
    main_dtype: Dtype = "float32"
    """What its weights are kept in, here and wherever the assistant is loaded; bfloat16 takes half the memory."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Of the assistant and of the encoder: a pretrained one (`name_or_path`), or new ones of the given size."""
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    beta: float = 0.05
    """Weight of the KL term, summed over a trajectory, beside the cross-entropy summed over tokens. At 1 the loss is a
    bound of the likelihood, but a frozen main model, which hears latents badly, then does without them."""
    free_steps: int = 0
    """First steps without the KL term, in which the main model is taught to listen: at once with it, it learns to do
    without latents."""
    beta_warmup_steps: int = 0
    """Steps over which beta rises from 0 after those."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: loop.LoopConfig

    def __post_init__(self):
        loop.at_least(0, self, "beta", "free_steps", "beta_warmup_steps")
        if self.free_steps >= self.loop.steps:
            raise ValueError(
                f"the policy learns only after the first {self.free_steps} free_steps, and loop.steps is "
                f"{self.loop.steps}; set free_steps below it"
            )


@dataclass(frozen=True)
class Batch:
    """Questions and worked solutions, as texts and as the main model's tokens; the share of beta that counts."""

    questions: list[str]
    solutions: list[str]
    target: Tokens
    beta_share: float


class WarmStart(nn.Module):
    """An assistant and the encoder of its latents: a language model over `[question][solution][T learned embeddings]`,
    last hidden states there -> mean and log-variance.
    """

    def __init__(self, assistant: LatentAssistant, encoder: Backbone, seed: int = 0):
        super().__init__()
        self.assistant, self.encoder = assistant, encoder
        config = assistant.config
        self.queries = nn.Parameter(torch.empty(config.num_latents, encoder.width))
        self.to_posterior = nn.Linear(encoder.width, 2 * config.latent_width)
        self.init_weights(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Queries and heads; the language models keep theirs."""
        width, layer = self.assistant.config.latent_width, self.to_posterior
        self.queries.normal_(0, 0.02, generator=generator)
        layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
        layer.bias.zero_()
        # A fifth of the policy's noise: latents that begin noisy are ignored, and then nothing is learned.
        layer.bias[width:] = 2 * self.assistant.policy.log_std - 3

    def encode(self, questions: list[str], solutions: list[str]) -> Posterior:
        """q(z | question, solution): `mean` and `log_var` (B, T, D).

        Raises:
            ValueError: if a question, its solution and the latents have more tokens than the encoder has positions.
        """
        parts = tokenize_pairs(self.encoder, questions, solutions, len(self.queries))
        return read_posterior(self.encoder, parts, self.queries, self.to_posterior)


def solution_log_probs(
    assistant: LatentAssistant, batch: Batch, latents: Float[Tensor, "B T D"]
) -> tuple[Float[Tensor, "B A"], Bool[Tensor, "B A"]]:
    """The main model's log-probabilities of the solution's tokens after each question's latents, and which of them it
    would have written itself; padding has log-probability 0 and counts as written.
    """
    ids, valid = batch.target
    prefix, _ = assistant.main_prefix(batch.questions, latents[:, None])
    _, hidden = append(assistant.main, prefix, assistant.main.embed(ids[:, :-1]), valid[:, :-1])
    logits = assistant.main.logits(torch.cat([prefix.hidden[:, None], hidden], dim=1))
    return torch.where(valid, token_log_probs(logits, ids), 0.0), (logits.argmax(-1) == ids) | ~valid


def loss(model: WarmStart, batch: Batch, generator: torch.Generator, beta: float):
    """-log p(y | q, z) + beta KL, nats, summed over a problem and averaged over problems; and what to log."""
    policy = model.assistant.policy
    posterior = model.encode(batch.questions, batch.solutions)
    latents = posterior.sample(generator)
    prior = policy.means(policy.open(batch.questions), latents)
    kl = gaussian_kl(posterior.mean, (0.5 * posterior.log_var).exp(), prior, policy.std, "sum").mean()
    log_probs, written = solution_log_probs(model.assistant, batch, latents)
    answer = -log_probs.sum(1).mean()
    return answer + batch.beta_share * beta * kl, {
        "loss/answer": answer.detach(),
        "loss/kl": kl.detach(),
        "sft/exact_teacher_forced": written.all(1).float().mean(),
    }


def batches_of(main: Backbone, config: Config, examples: Examples) -> ProblemBatches:
    """Questions and worked solutions; the loss is a mean over problems, so that nothing else is counted."""

    def make(some: Some) -> Batch:
        questions = [p.question for p in some.problems]
        solutions = [sft_target(p, config.data.task) for p in some.problems]
        _, target = tokenize_pairs(main, questions, solutions)  # latents take positions of the question
        free = some.step < config.free_steps
        share = 0.0 if free else risen(some.step - config.free_steps, config.beta_warmup_steps)
        return Batch(questions, solutions, target, share)

    return ProblemBatches(examples, make, lambda problems, _: [])


def main(config: Config) -> Path:
    """Train and save `final/` (assistant and projection); returns its path."""
    run_dir = begin(config)
    task = config.data.task
    assistant = LatentAssistant.from_backbones(
        config.assistant,
        Backbone.from_config(config.backbone, alphabet(task)),
        load_main(config.main, config.main_dtype),
        config.main,
        config.loop.seed,
    )
    model = WarmStart(assistant, Backbone.from_config(config.backbone, alphabet(task)), config.loop.seed)

    batches = partial(batches_of, assistant.main, config)
    model = loop.run(
        config.loop,
        run_dir,
        model,
        batches(config.data.examples(config.loop.batch_size, config.loop.seed)),
        lambda model, batch, generator: loss(model, batch, generator, config.beta),
        label="dlr-warmup",
        validation=config.validation.of(task, batches),
    )
    return loop.save_final(model.assistant, run_dir)
