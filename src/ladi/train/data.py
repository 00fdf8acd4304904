"""Problems -> batches of token ids and latents; the cache of precomputed latents.

Example i of step s is number s * batch_size + i of passes over the training problems, each over a finite task in an
order of its own: the data position is the step, and a resumed run reads what the uninterrupted one would have read.
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from ladi.arrays import Bool, Float, Int, Tensor, content_hash
from ladi.bundled import located
from ladi.devices import default_device
from ladi.draws import mix_seed
from ladi.inference.text import blocks_of
from ladi.models.backbone import Backbone
from ladi.models.vae import ThoughtVAE
from ladi.rundir import folder_fingerprint, is_first_process, json_fingerprint, open_run, writing
from ladi.tasks import TaskConfig
from ladi.tasks.base import Problem, asked, overlap
from ladi.tasks.blocks import Block
from ladi.train.loop import Share, Validation

SAMPLE = 1000
"""Training problems of an endless task on which lengths are checked."""
Tokens = tuple[Int[Tensor, "B _"], Bool[Tensor, "B _"]]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which problems a stage trains on."""

    task: TaskConfig
    num_train: int = 300_000
    """Size of the training set, which stages share and whose latents are cached: an endless task is cut there, and so
    is a finite one; 0 takes all training problems of a finite task."""
    num_workers: int = 0
    """Processes that make the problems of coming steps while a step runs: for generated problems beside a fast
    accelerator, which else waits for them. The problems are the same. 0: each step makes its own, as it always does in
    reinforcement learning, which needs few."""

    def __post_init__(self):
        if self.num_train < 0:
            raise ValueError(f"num_train must not be negative, got {self.num_train}; 0 takes all of a finite task")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}; 0 starts none")

    @property
    def size(self) -> int:
        """Problems of the training set.

        Raises:
            ValueError: if these are all of an endless task.
        """
        if self.num_train:
            return self.num_train
        available = self.task.num_problems("train")
        if available is None:
            raise ValueError(f"num_train 0 takes all, but {self.task.name} is endless; set it, to 300000 for example")
        return available

    def check(self) -> None:
        """Read a finite task: see that it has enough problems, and print how many test questions are in training.

        Raises:
            ValueError: if there are fewer training problems than `num_train`, or none.
        """
        size, available = self.size, self.task.num_problems("train")
        if available is None:
            return
        if available == 0:
            raise ValueError("the task has no training problems; give it more")
        if available < size:
            raise ValueError(f"num_train is {size}, but the task has {available} training problems; lower it, or set 0")
        train = [asked(self.task.problem("train", i)) for i in range(size)]
        for split in self.task.splits[1:]:
            held_out = [asked(self.task.problem(split, i)) for i in range(self.task.num_problems(split) or 0)]
            if is_first_process():
                print(
                    f"{overlap(train, held_out)} of {len(held_out)} {split} questions also occur in training",
                    flush=True,
                )

    def sample(self) -> list[Problem]:
        """Training problems that lengths are checked on: all of a finite task, the first of an endless one."""
        is_endless = self.task.num_problems("train") is None
        count = min(SAMPLE, self.size) if is_endless else self.size
        return [self.task.problem("train", i) for i in range(count)]

    def texts(self) -> list[tuple[str, tuple[str, ...], str]] | None:
        """Question, steps and answer of each training problem of a finite task; None for an endless one."""
        if self.task.num_problems("train") is None:
            return None
        problems = (self.task.problem("train", i) for i in range(self.size))
        return [(problem.question, problem.steps, problem.answer) for problem in problems]

    def examples(self, batch_size: int, seed: int) -> "Examples":
        """The batches of training.

        Rows of a file may be sorted, so every pass over a finite task is shuffled, by `seed`; what an endless task
        generates is independent, and passes over it keep its order.
        """
        size, is_endless = self.size, self.task.num_problems("train") is None

        def indices(step: int, start: int, stop: int) -> Int[Tensor, " B"]:
            position = step * batch_size + torch.arange(start, stop)
            if is_endless:
                return position % size
            places = zip((position // size).tolist(), (position % size).tolist(), strict=True)
            return torch.stack([pass_order(size, seed, number)[place] for number, place in places])

        return Examples(batch_size, indices, partial(self.task.problem, "train"), num_workers=self.num_workers)


MODELS = ("backbone_dir", "vae_dir", "reasoner_dir", "model_dir", "main")
"""Settings of stages that name a model."""


def begin(config: Any) -> Path:
    """Check a stage's data and open its run's folder.

    Raises:
        ValueError: as `DataConfig.check`, or if the folder belongs to a run with other settings, texts or models.
        OSError: if the folder cannot be written.
    """
    config.data.check()
    return open_run(config.out_dir, config, inputs_of(config) if is_first_process() else {})


def inputs_of(config: Any) -> dict[str, str]:
    """What a stage reads, by the setting that names it -> hash of its contents: a finite task's training texts, and
    models in folders.
    """
    texts = config.data.texts()
    found = {} if texts is None else {"data": json_fingerprint(texts)}
    names = {name: getattr(config, name, "") for name in MODELS}
    names["backbone.name_or_path"] = getattr(getattr(config, "backbone", None), "name_or_path", "")
    folders = {name: Path(located(value)) for name, value in names.items() if str(value)}
    return found | {name: folder_fingerprint(folder) for name, folder in folders.items() if folder.is_dir()}


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Losses on problems that are not trained on, logged as `validation/...`; none by default."""

    every: int = 0
    """Steps from one validation to the next; the last step has one too. 0 means none."""
    split: str = "validation"
    """Where its problems come from; name `test` where a task has no other, and then do not choose by it."""
    num_problems: int = 512
    """At most all."""

    def __post_init__(self):
        if self.every < 0 or self.num_problems < 1:
            raise ValueError(
                f"need every >= 0 and num_problems >= 1 (validation), got {self.every} and {self.num_problems}"
            )

    def of(self, task: TaskConfig, batches: "Callable[[Examples], ProblemBatches]") -> Validation | None:
        """What `loop.run` takes, with its one batch made as those of training are; None without validation.

        Raises:
            ValueError: if the task has no such split, or no problems there.
        """
        if not self.every:
            return None
        examples = self.examples(task)
        return Validation(self.every, examples.batch_size, batches(examples))

    def examples(self, task: TaskConfig) -> "Examples":
        """The one batch of validation.

        Raises:
            ValueError: if the task has no such split, or no problems there.
        """
        if self.split not in task.splits[1:]:
            raise ValueError(
                f"the task {task.name} has no split {self.split!r} to validate on; set --validation.split to one of "
                f"{', '.join(task.splits[1:])}, or --validation.every 0"
            )
        available, problem = task.num_problems(self.split), partial(task.problem, self.split)
        if available is None:
            return Examples(self.num_problems, in_order, problem, is_held_out=True)
        if not available:
            raise ValueError(f"the split {self.split!r} of the task {task.name} is empty; set --validation.every 0")
        order = pass_order(available, 0, 0)
        count = min(self.num_problems, available)
        return Examples(count, lambda step, start, stop: order[start:stop], problem, is_held_out=True)


def in_order(step: int, start: int, stop: int) -> Int[Tensor, " B"]:
    """Positions of examples whose number is their position."""
    return torch.arange(start, stop)


@dataclass(frozen=True)
class Examples:
    """Which problems stand in the batches of a stage."""

    batch_size: int
    indices: Callable[[int, int, int], Int[Tensor, " B"]]
    """Of examples [start, stop) of a step's batch: their positions in the split."""
    problem: Callable[[int], Problem]
    """The one at a position."""
    is_held_out: bool = False
    """Of validation: the same problems at every step, and the same noise with them."""
    num_workers: int = 0
    """Processes that `ahead` starts."""

    def problems(self, step: int, start: int, stop: int) -> list[Problem]:
        """Examples [start, stop) of a step's batch."""
        return [self.problem(i) for i in self.indices(step, start, stop).tolist()]

    def ahead(self, step: int, start: int, stop: int) -> Iterator[list[Problem]]:
        """Those of this and of all later steps, which `num_workers` processes make before they are asked for."""
        coming = (self.indices(later, start, stop).tolist() for later in count(step))
        return made_ahead(self.problem, coming, self.num_workers)


class Indexed(Dataset[Problem]):
    """Problems by their positions, as torch's `DataLoader` asks for them."""

    def __init__(self, problem: Callable[[int], Problem]):
        self.problem = problem

    def __getitem__(self, index: int) -> Problem:
        return self.problem(index)


def made_ahead(
    problem: Callable[[int], Problem], positions: Iterable[list[int]], num_workers: int
) -> Iterator[list[Problem]]:
    """The problems at each list of positions in turn; `num_workers` processes are a few lists ahead."""
    loader = DataLoader(
        Indexed(problem),
        batch_sampler=positions,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # else the global one is drawn from
    )
    return iter(loader)


def ignore_signals(worker: int) -> None:
    """In a worker: the main process, which a launcher signals too, first saves and then ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Some:
    """The problems of one micro-batch."""

    step: int
    noise_step: int
    """Names the noise that is drawn with them."""
    start: int
    """Where the first of them stands in the step's batch."""
    problems: list[Problem]
    indices: Int[Tensor, " B"]
    """Their positions in the split."""
    counts: list[float]
    """What their losses divide by: the whole batch's counts, in proportion to the problems."""


class ProblemBatches:
    """`loop.Batches` of problems, which `make` turns into what a loss takes.

    `count(problems, indices)` are numbers that the losses of a step divide by, such as tokens. They are taken over its
    whole batch, in all processes: divided by its own count, a micro-batch would weigh as much with few tokens as with
    many.
    """

    def __init__(
        self,
        examples: Examples,
        make: Callable[[Some], Any],
        count: Callable[[Sequence[Problem], Tensor], Sequence[int]],
    ):
        self.examples, self.make, self.count = examples, make, count
        self.first = self.batch_size = 0
        self.ahead: Iterator[list[Problem]] | None = None
        self.next_step = 0
        self.problems: list[Problem] = []
        self.indices = torch.empty(0, dtype=torch.long)
        self.counts: list[int] = []

    def prepare(self, step: int, share: Share) -> None:
        """Take this process's problems and count the step's batch."""
        self.first, self.indices = share.first, self.examples.indices(step, share.first, share.stop)
        if self.ahead is None or step != self.next_step:
            self.ahead = self.examples.ahead(step, share.first, share.stop)
        self.problems, self.next_step = next(self.ahead), step + 1
        counts = torch.tensor([*self.count(self.problems, self.indices), len(self.problems)], device=default_device())
        *self.counts, self.batch_size = share.total(counts).tolist()

    def batch_at(self, step: int, start: int, stop: int) -> Any:
        """Examples [start, stop) of the step's batch."""
        rows = slice(start - self.first, stop - self.first)
        counts = [count * (stop - start) / self.batch_size for count in self.counts]
        noise_step = 0 if self.examples.is_held_out else step
        return self.make(Some(step, noise_step, start, self.problems[rows], self.indices[rows], counts))


@lru_cache(maxsize=2)  # a batch seldom reaches into more than two passes
def pass_order(size: int, seed: int, number: int) -> Int[Tensor, " P"]:
    """The order of one pass over P training problems."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(mix_seed(seed, number)))


def num_tokens(backbone: Backbone, texts: Sequence[str], chunk: int = 1000) -> list[int]:
    """Tokens of each text, without `<eos>`."""
    pieces = (backbone.tokenize(texts[i : i + chunk])[1].sum(1) for i in range(0, len(texts), chunk))
    return [count for piece in pieces for count in piece.tolist()]


def count_tokens(backbone: Backbone, texts: Sequence[str]) -> int:
    """Tokens of all texts, with one `<eos>` each: what a model learns to write."""
    return sum(num_tokens(backbone, texts)) + len(texts)


def check_lengths(
    what: str,
    texts: Sequence[str],
    lengths: Sequence[int],
    unit: str,
    longest_allowed: int,
    flag: str,
    tolerated: float = 0.0,
) -> None:
    """Raise if a larger share of `what` (such as answers) than `tolerated` is longer than what the model will write.

    A smaller share is printed.

    Raises:
        ValueError: with how many are, the longest of them, and the flag that lets them all in.
    """
    num_longer, longest = sum(length > longest_allowed for length in lengths), max(lengths)
    found = f"{num_longer} of {len(lengths)} {what} have more than {longest_allowed} {unit}, the longest {longest}"
    if num_longer > tolerated * len(lengths):
        example = texts[lengths.index(longest)][:60]
        raise ValueError(f"{found}: {example!r}; set {flag} {longest}, or leave these problems out")
    if num_longer and is_first_process():
        print(f"{found}: they will be cut ({flag} {longest} would let them in)", flush=True)


TOLERATED = 0.05
"""Share of texts that may be cut: outliers of real data."""


def pass_size() -> int:
    """Problems whose blocks a VAE reads in one pass: more than 64 do not fit a CPU's caches."""
    return 64 if default_device().type == "cpu" else 256


def precompute_latents(vae_dir: Path, data: DataConfig, path: Path, max_blocks: int, chunk: int = 0) -> "LatentCache":
    """Posterior of every block of the training set, computed once and kept at `path` (safetensors, fp16).

    The VAE is loaded only if there is something to compute; it reads `chunk` problems in a pass, or by default as many
    as suit the device.

    Raises:
        ValueError: if `path` holds latents of another VAE or of other data, or is damaged.
        OSError: if it cannot be written.
    """
    data, vae_dir = replace(data, num_train=data.size), Path(located(vae_dir))
    wanted = latents_fingerprint(vae_dir, data, max_blocks)
    if path.is_file():
        return LatentCache.load(path, wanted)
    vae = ThoughtVAE.from_pretrained(vae_dir).to(default_device())
    config, chunk = vae.config, chunk or pass_size()
    shape = (data.num_train, max_blocks, config.num_latents, config.latent_width)
    mean, log_var = torch.zeros(shape, dtype=torch.float16), torch.zeros(shape, dtype=torch.float16)
    num_blocks = torch.zeros(data.num_train, dtype=torch.int16)
    print(f"encoding the blocks of {data.num_train:,} training problems into {path} ...", flush=True)
    is_terminal, tenth = sys.stdout.isatty(), max(1, data.num_train // (10 * chunk)) * chunk
    chunks = [range(first, min(first + chunk, data.num_train)) for first in range(0, data.num_train, chunk)]
    made = made_ahead(partial(data.task.problem, "train"), map(list, chunks), data.num_workers)
    for rows, problems in zip(track(chunks, "encoding", disable=not is_terminal), made, strict=True):
        if rows.start and rows.start % tenth == 0 and not is_terminal:
            print(f"encoded {rows.start:,}", flush=True)
        blocks = [blocks_of(problem, config.block, data.task.step_separator) for problem in problems]
        encoded = encode_blocks(vae, blocks, max_blocks)
        mean[rows.start : rows.stop], log_var[rows.start : rows.stop] = encoded.mean, encoded.log_var
        num_blocks[rows.start : rows.stop] = encoded.valid.sum(1)
    unfinished = path.with_suffix(".partial")
    tensors = {"mean": mean, "log_var": log_var, "num_blocks": num_blocks}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, metadata={"fingerprint": wanted, "sha256": content_hash(tensors)})
        unfinished.rename(path)
    return LatentCache.load(path, wanted)


def latents_fingerprint(vae_dir: Path, data: DataConfig, max_blocks: int) -> str:
    """Names the VAE's files and the training set that cached latents belong to: that of a finite task by its texts, for
    a file may hold other problems under the same name, and settings such as those of a judge are nothing to latents.
    """
    texts = data.texts()
    generated = {"task": asdict(data.task), "num_train": data.num_train}
    problems = generated if texts is None else [(question, steps) for question, steps, _ in texts]
    return json_fingerprint([folder_fingerprint(vae_dir), problems, max_blocks])


@dataclass(frozen=True)
class EncodedBlocks:
    """Posteriors of the blocks of B problems (raw latents, fp32), padded to K blocks; `valid` marks the real ones."""

    mean: Float[Tensor, "B K N D"]
    log_var: Float[Tensor, "B K N D"]
    valid: Bool[Tensor, "B K"]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "B K N D"]:
        """One draw from the posterior."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean.device)
        return self.mean + (0.5 * self.log_var).exp() * noise


@torch.no_grad()
def encode_blocks(vae: ThoughtVAE, blocks: Sequence[Sequence[Block]], max_blocks: int) -> EncodedBlocks:
    """Posteriors of the blocks of each problem.

    Raises:
        ValueError: if a problem has more than `max_blocks` blocks.
    """
    longest = max(len(row) for row in blocks)
    if longest > max_blocks:
        raise ValueError(f"a problem has {longest} blocks, more than max_blocks ({max_blocks}); raise max_blocks")
    posterior = vae.encode(vae.tokenize([block for row in blocks for block in row]))
    device = posterior.mean.device
    counts = torch.tensor([len(row) for row in blocks], device=device)
    block_valid = torch.arange(max_blocks, device=device) < counts[:, None]
    mean = posterior.mean.new_zeros(len(blocks), max_blocks, *posterior.mean.shape[1:])
    log_var = torch.zeros_like(mean)
    mean[block_valid], log_var[block_valid] = posterior.mean, posterior.log_var
    return EncodedBlocks(mean, log_var, block_valid)


def with_latents(
    examples: Examples, task: TaskConfig, vae_dir: Path, max_blocks: int
) -> "tuple[Examples, LatentCache]":
    """The one batch of validation, numbered from 0, and the posteriors of its blocks, encoded here.

    Raises:
        ValueError: if a problem has more than `max_blocks` blocks.
    """
    problems = examples.problems(0, 0, examples.batch_size)
    vae = ThoughtVAE.from_pretrained(located(vae_dir)).to(default_device())
    blocks = [blocks_of(problem, vae.config.block, task.step_separator) for problem in problems]
    size = pass_size()
    parts = [encode_blocks(vae, blocks[i : i + size], max_blocks) for i in range(0, len(blocks), size)]
    latents = LatentCache(
        *(torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("mean", "log_var")),
        num_blocks=torch.cat([part.valid.sum(1) for part in parts]).cpu(),
    )
    return Examples(len(problems), in_order, problems.__getitem__, examples.is_held_out), latents


@dataclass(frozen=True)
class LatentCache:
    """Posteriors of a set of problems, in memory."""

    mean: Float[Tensor, "P K N D"]
    log_var: Float[Tensor, "P K N D"]
    num_blocks: Int[Tensor, " P"]

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "LatentCache":
        """Read the cache.

        Raises:
            ValueError: if it was made by another VAE or from other data, or is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("mean", "log_var", "num_blocks")}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the latents are computed again") from error
        found = metadata.get("fingerprint", "none")
        if metadata.get("sha256") not in (None, content_hash(tensors)):  # None: written without one
            raise ValueError(f"{path} is damaged (its hash differs); delete it, and the latents are computed again")
        if found != fingerprint:
            raise ValueError(
                f"{path} holds latents of another VAE or other data (fingerprint {found[:12]}, "
                f"need {fingerprint[:12]}); delete it or name another file"
            )
        return cls(**tensors)

    def rows(self, indices: Int[Tensor, " B"], device: torch.device) -> EncodedBlocks:
        """Posteriors of some examples, padded to the longest of them."""
        counts = self.num_blocks[indices]
        longest = int(counts.max())
        valid = torch.arange(longest) < counts[:, None]
        mean, log_var = (x[indices, :longest].float().to(device) for x in (self.mean, self.log_var))
        return EncodedBlocks(mean, log_var, valid.to(device))


def tokenize_pairs(
    backbone: Backbone, questions: Sequence[str], answers: Sequence[str], num_beside: int = 0
) -> tuple[Tokens, Tokens]:
    """Questions padded on the left, answers with `<eos>` padded on the right.

    Raises:
        ValueError: if a question, its answer and `num_beside` more have more tokens than the model has positions.
    """
    question, answer = backbone.tokenize(questions, opening=True), backbone.tokenize(answers, add_eos=True)
    lengths = question[1].sum(1) + answer[1].sum(1) + num_beside
    backbone.check_length(int(lengths.max()), questions[int(lengths.argmax())])
    return question, answer
