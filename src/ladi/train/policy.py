"""What reinforcement learning of texts and of latents share: sampled groups, their scores, replayed log-probabilities.

A rollout is made once for the whole batch of a step, by the weights of that moment, and serves `num_iterations`
optimizer steps; micro-batches are slices of it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from ladi.arrays import Bool, Float, Int, Tensor
from ladi.devices import default_device
from ladi.draws import Source, Streams
from ladi.losses import token_log_probs
from ladi.models.backbone import Backbone, compute_again
from ladi.models.decoding import Continuation, Prefix, append, expand, select_rows
from ladi.rl.objective import Normaliser, SurrogateConfig, Total, alone, surrogate, token_kl
from ladi.tasks.base import Problem
from ladi.train import loop
from ladi.train.optim import ALIKE, Treatment
from ladi.train.rewards import Rewards

SHOWN = ("reward/mean", "rollout/pass@1", "rollout/distinct_correct", "text/entropy", "latent/spread")
"""What the terminal shows of an update."""


@dataclass(frozen=True)
class Texts:
    """P x R x M sampled texts (R latents or 1, M texts each), their rewards, and which are correct.

    `solution` numbers the different correct solutions of a question; -1 where a text is wrong. `timed_out` are those
    whose judging reached a time limit, `unjudged` those where it failed, whatever the text; both count as wrong.
    """

    ids: Int[Tensor, "P R M T"]
    valid: Bool[Tensor, "P R M T"]
    finished: Bool[Tensor, "P R M"]
    rewards: Float[Tensor, "P R M"]
    solution: Int[Tensor, "P R M"]
    timed_out: Bool[Tensor, "P R M"]
    unjudged: Bool[Tensor, "P R M"]

    def rows(self, rows: Tensor) -> "Texts":
        """Those of some questions."""
        return Texts(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def behind(self, latents: Bool[Tensor, "P R"]) -> "Texts":
        """Those of the L latents that are marked, as L x 1 x M."""
        return Texts(**{name: getattr(self, name)[latents][:, None] for name in self.__dataclass_fields__})

    def counted(self, mask_truncated: bool) -> Bool[Tensor, "P R M T"]:
        """The tokens that a loss counts: all valid ones, or with `mask_truncated` those of finished texts only."""
        return self.valid & (self.finished[..., None] | (not mask_truncated))


def score(
    backbone: Backbone,
    rewards: Rewards,
    problems: Sequence[Problem],
    sampled: Continuation,
    shape: tuple[int, int],
    whole: bool,
) -> Texts:
    """Judge `shape` = (R, M) sampled texts of each problem."""
    group = shape[0] * shape[1]
    repeated = [problem for problem in problems for _ in range(group)]
    scores = rewards(repeated, backbone.detokenize(sampled.ids), whole)
    solution = []
    for first in range(0, len(repeated), group):
        known: dict[str, int] = {}
        for verdict in scores.verdicts[first : first + group]:
            solution.append(known.setdefault(verdict.canonical, len(known)) if verdict.correct else -1)
    lead = (len(problems), *shape)
    device = sampled.ids.device
    return Texts(
        ids=sampled.ids.view(*lead, -1),
        valid=sampled.valid.view(*lead, -1),
        finished=sampled.finished.view(lead),
        rewards=torch.tensor(scores.rewards, device=device).view(lead),
        solution=torch.tensor(solution, device=device).view(lead),
        timed_out=torch.tensor([v.timed_out for v in scores.verdicts], device=device).view(lead),
        unjudged=torch.tensor([v.unjudged for v in scores.verdicts], device=device).view(lead),
    )


def text_entropy(sampled: Continuation, total: Total = alone) -> dict[str, Tensor]:
    """Entropy of what a rollout's tokens were drawn from, mean over those of all processes; 0 if greedy."""
    entropies = torch.where(sampled.valid, sampled.entropies.double(), 0.0)
    summed, count = total(torch.stack([entropies.sum(), sampled.valid.sum()]))
    return {"text/entropy": summed / count}


def text_statistics(texts: Texts) -> dict[str, Tensor]:
    """pass@1, pass@group, distinct correct solutions, length, truncation, and time-outs and failures of the judge, of a
    rollout's texts.
    """
    solution = texts.solution.flatten(1)
    distinct = [float(len({i for i in row if i >= 0})) for row in solution.tolist()]
    return {
        "rollout/pass@1": (solution >= 0).float().mean(),
        "rollout/pass@group": (solution >= 0).any(1).float().mean(),
        "rollout/distinct_correct": torch.tensor(distinct).mean(),
        "rollout/length": texts.valid.float().sum(-1).mean(),
        "rollout/truncated": 1 - texts.finished.float().mean(),
        "rollout/judge_timeouts": texts.timed_out.float().mean(),
        "rollout/judge_failures": texts.unjudged.float().mean(),
    }


def read_behind(
    prefix: Prefix, given: Sequence[Tensor], read: Callable[..., tuple[Tensor, ...]], at_once: int = 0
) -> tuple[Tensor, ...]:
    """`read(prefix, *given)`, where each of the prefix's P rows serves S / P neighbouring rows of the given tensors.

    With `at_once` > 0 that many of the S rows are read at a time, and again in the backward pass: what the others would
    keep until then needs no memory.
    """
    num_rows = len(given[0])
    repeats = num_rows // len(prefix.position)

    def some(rows: Tensor) -> tuple[Tensor, ...]:
        return read(select_rows(prefix, rows // repeats), *(x[rows] for x in given))

    if not at_once or num_rows <= at_once:
        return read(expand(prefix, repeats), *given)
    pieces = torch.arange(num_rows, device=given[0].device).split(at_once)
    return tuple(torch.cat(parts) for parts in zip(*(compute_again(some, rows) for rows in pieces), strict=True))


def text_log_probs(
    backbone: Backbone,
    prefix: Prefix,
    ids: Int[Tensor, "S T"],
    valid: Bool[Tensor, "S T"],
    temperature: float,
    at_once: int = 0,
) -> Float[Tensor, "S T"]:
    """Log-probabilities of sampled tokens after `prefix`, of softmax(logits / temperature).

    Each of the prefix's P rows serves S / P neighbouring texts; `at_once` as in `read_behind`.
    """

    def read(prefix: Prefix, ids: Tensor, valid: Tensor) -> tuple[Tensor]:
        _, hidden = append(backbone, prefix, backbone.embed(ids[:, :-1]), valid[:, :-1])
        logits = backbone.logits(torch.cat([prefix.hidden[:, None], hidden], dim=1)).float() / temperature
        return (token_log_probs(logits, ids),)

    return read_behind(prefix, (ids, valid), read, at_once)[0]


def text_surrogate(
    texts: Texts,
    log_probs: Float[Tensor, "S T"],
    old: "OldLogProbs",
    advantages: Float[Tensor, "*shape"],
    config: SurrogateConfig,
    size: Normaliser,
    mask_truncated: bool,
    reference: Float[Tensor, "S T"] | None = None,
    beta: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The clipped surrogate of sampled texts, whose elements are tokens, and its terms for the log.

    `log_probs` and `reference` are replays of all texts, by the weights that learn and by those that the KL is taken
    from.
    """
    mask = texts.counted(mask_truncated).flatten(0, 2)
    kl = None if reference is None else token_kl(log_probs, reference)
    drawn = old.of("texts", log_probs)
    value, stats = surrogate(log_probs, drawn, advantages.flatten(), mask, config, size, kl, beta)
    return value, {"loss/text": value.detach(), **{f"text/{name}": x for name, x in stats.items()}}


class OldLogProbs:
    """Log-probabilities of a micro-batch under the weights that drew it: those of its first replay, detached.

    Those of sampling itself belong to passes of other shapes. In bf16 they differ by rounding, which the numbers of a
    block add up to more than a clip range.
    """

    def __init__(self):
        self.values: dict[str, Tensor] = {}

    def of(self, name: str, replayed: Tensor) -> Tensor:
        """What the first call with this name was given."""
        return self.values.setdefault(name, replayed.detach())


@runtime_checkable
class Sliceable(Protocol):
    """A rollout of the questions of one step."""

    def rows(self, rows: Tensor) -> Any: ...


class RolloutBuffer:
    """`loop.Batches` that samples when a new unit of steps begins, then hands out slices, each with its old
    log-probabilities.

    `sample(step, share)` makes the rollout of a process's share of the questions of a batch. It must depend on the
    weights and its arguments alone, so that a resumed run equals the uninterrupted one.
    """

    def __init__(self, sample: Callable[[int, loop.Share], Sliceable], num_iterations: int):
        self.sample, self.num_iterations = sample, num_iterations
        self.rollout: Sliceable | None = None
        self.old: dict[int, OldLogProbs] = {}
        self.first = 0

    def prepare(self, step: int, share: loop.Share) -> None:
        """Sample anew if `step` begins a unit."""
        if step % self.num_iterations == 0 or self.rollout is None:
            self.rollout, self.first = self.sample(step // self.num_iterations, share), share.first
            self.old = {}

    def batch_at(self, step: int, start: int, stop: int) -> tuple[Any, OldLogProbs]:
        """Questions [start, stop) of the step's batch; a unit's steps have the same micro-batches."""
        assert self.rollout is not None, "prepare comes first"
        rows = torch.arange(start - self.first, stop - self.first)
        return self.rollout.rows(rows), self.old.setdefault(start, OldLogProbs())


def optimise(
    config: Any,
    run_dir: Path,
    model: Any,
    sample: Callable[[list[Problem], Source, Total], Sliceable],
    loss: Callable[[Any, Any, OldLogProbs], tuple[Tensor, dict[str, Tensor]]],
    label: str,
    texts_per_question: int,
    on_log: loop.OnLog | None,
    treatment: Treatment = ALIKE,
) -> Any:
    """`loop.run` over rollouts: `sample(problems, source, total)` makes one, `loss(model, slice, old)` judges a slice.

    A question's texts stay in one process; `total` sums what statistics of the whole batch need over processes.

    `config` is a stage's, with `data`, `loop` and `policy.num_iterations`.
    """
    batch_size, num_iterations = config.loop.batch_size, config.policy.num_iterations

    examples = config.data.examples(batch_size, config.loop.seed)

    def sample_batch(step: int, share: loop.Share) -> Sliceable:
        problems = examples.problems(step, share.first, share.stop)
        return sample(problems, Streams.of(config.loop.seed, range(share.first, share.stop), step), share.total)

    buffer = RolloutBuffer(sample_batch, num_iterations)
    return loop.run(
        config.loop,
        run_dir,
        model,
        buffer,
        lambda wrapped, batch, generator: loss(wrapped, *batch),
        label=label,
        unit=num_iterations,
        shown=SHOWN,
        on_log=on_log,
        treatment=treatment,
        by_layer=False,
        samples_per_step=batch_size * texts_per_question / num_iterations,
    )


Model = TypeVar("Model", bound=torch.nn.Module)


def reference_of(model: Model, beta: float) -> Model | None:
    """A frozen copy of `model` for the KL term of weight `beta`, where both will be in training; None for weight 0."""
    return copy.deepcopy(model.to(default_device())).requires_grad_(False) if beta else None


def zero_loss(model: torch.nn.Module) -> Tensor:
    """0 with a gradient of 0 for every trainable weight: the loss of a batch in which no group has any contrast."""
    return sum(((p * 0).sum() for p in model.parameters() if p.requires_grad), torch.zeros(()))
