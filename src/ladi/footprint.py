"""What each stage holds in memory and how many tokens an update takes, from the models' shapes: nothing is loaded.

Weights, gradients, the optimizer's moments and their average are counted in fp32, as the loop keeps them, and beside
them what the backward pass saves of one micro-batch, operation by operation, or the keys and values of a rollout.
Texts that are yet to be sampled count with the greatest length allowed: one such text pads its whole batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ladi.inference.text import alphabet, blocks_of, sft_target
from ladi.models.backbone import SPECIAL_TOKENS, BackboneConfig, LmShape, lm_shape
from ladi.train.loop import LoopConfig
from ladi.train.pipeline import Pipeline

CHARACTERS_PER_TOKEN = 3.5
"""Of a pretrained model's tokenizer, which need not be here; a new model reads single characters."""
NUM_SPECIAL = len(SPECIAL_TOKENS) + 3
"""Special tokens of a new model."""
SAMPLE = 64
"""Problems that lengths are measured on."""
Count = int | float


@dataclass(frozen=True)
class Estimate:
    """Of one stage, in one process; bytes."""

    parameters: int
    """Of all models that are loaded."""
    trainable: int
    state: int
    """Weights of all models, gradients, moments and average of the trainable ones."""
    activations: int | None
    """None where the data could not be read; so too the next two."""
    sampling: int | None
    """Keys and values of a rollout while its texts are sampled; 0 in stages without."""
    tokens_per_update: int | None
    disk: int
    """What stays of it when it is done: its model, the newest checkpoint, and of `reasoner` the cached latents."""
    disk_peak: int
    """What it has there at most while it trains."""


@dataclass(frozen=True)
class Lengths:
    """Most tokens of a problem, which is what a padded batch holds."""

    question: float
    target: float
    """What a token-level model writes."""
    answer: float
    blocks: int
    block: float
    characters: int
    """Different characters, which are a new model's vocabulary."""
    problems: int
    """Of the training set; 0 where it cannot be read."""


UNKNOWN = Lengths(question=0.0, target=0.0, answer=0.0, blocks=1, block=0.0, characters=100, problems=0)
"""Where the data cannot be read: nothing but the sizes of models follows from it."""


@dataclass(frozen=True)
class Saved:
    """Bytes for the backward pass: kept until then, and the most that is computed again there at a time."""

    kept: Count = 0
    again: Count = 0

    def __add__(self, other: "Saved") -> "Saved":
        return Saved(self.kept + other.kept, max(self.again, other.again))

    def __mul__(self, times: int) -> "Saved":
        return Saved(self.kept * times, self.again)

    def recomputed(self) -> "Saved":
        """The same in a checkpointed pass."""
        return Saved(0, self.kept + self.again)


@dataclass(frozen=True)
class Need:
    """Models loaded and trained (parameters); what is saved of a micro-batch; tokens of one problem."""

    loaded: int
    trainable: int
    saved: Saved
    tokens: Count
    in_half: int = 0
    """Parameters, of those loaded, that are kept in bfloat16."""
    sampled: Count = 0
    """Bytes of keys and values in a rollout of the whole batch."""


def lengths(pipeline: Pipeline) -> Lengths:
    """The longest among the first problems of the training split.

    Raises:
        ValueError, OSError: if the data cannot be read.
    """
    data, is_named = pipeline.sft.data, bool(pipeline.sft.backbone.name_or_path)
    task, per_token = data.task, CHARACTERS_PER_TOKEN if is_named else 1.0
    problems = [task.problem("train", i) for i in range(min(SAMPLE, data.size))]
    blocks = [blocks_of(problem, pipeline.vae.vae.block, task.step_separator) for problem in problems]

    reads_context = pipeline.vae.vae.reads_context

    def longest(texts: Iterable[str]) -> float:
        return max(map(len, texts)) / per_token + 1  # and one special token

    return Lengths(
        question=longest(p.question for p in problems),
        target=longest(sft_target(p, task) for p in problems),
        answer=longest(p.answer for p in problems),
        blocks=max(map(len, blocks)),
        block=longest("".join(block) if reads_context else block.text for row in blocks for block in row),
        characters=UNKNOWN.characters if is_named else len(alphabet(task)),
        problems=data.size,
    )


@dataclass(frozen=True)
class Passes:
    """What forward passes of one language model over a micro-batch save, under the settings of a stage's loop.

    Rows, and tokens of the head, are those of one problem.
    """

    lm: LmShape
    loop: LoopConfig
    half_weights: bool = False
    """The model is loaded in bfloat16."""

    @property
    def half(self) -> bool:
        """Whether matrices are multiplied in bfloat16."""
        return self.half_weights or self.loop.precision == "bf16"

    def cast(self, weights: int) -> int:
        """Bytes of the copies of frozen weights that a pass under autocast keeps, since they are not in bfloat16."""
        return 2 * weights * (self.half and not self.half_weights)

    def body(self, rows: Count, tokens: Count, before: Count = 0, frozen: bool = False) -> Saved:
        """Of `rows` rows of `tokens` positions each, behind `before` cached ones; without the LM head.

        A layer saves, per position, 6 vectors of the model's width (two norms, two residuals), 4 of the MLP's, the
        heads' queries, keys and values after rotation and repetition, where heads are normalised those before too, and
        its mask; per row the keys and values of what stands before. A frozen layer leaves out what only its weights'
        gradients need: the normalised vectors and the inputs of its matrices; but under autocast it saves the matrices'
        copies. With gradient checkpointing a layer keeps its input and the keys and values before and after it.
        """
        lm, half, rows = self.lm, self.half, rows * self.loop.micro_batch_size
        heads = (6 if lm.normalises_heads else 4) * lm.head_width + 2 * lm.normalises_heads * lm.kv_width
        vectors, mlp = 6 * lm.width + heads, 4 * lm.mlp_width
        if frozen:
            vectors -= 4 * lm.width + lm.normalises_heads * (lm.head_width + lm.kv_width)
            mlp -= lm.mlp_width
        # Under autocast norms and residuals stay in fp32 and are copied for the matrices; measured.
        position = (3.4 * vectors + 2 * mlp if half else 4 * (vectors + mlp)) + 4 * (lm.num_heads + before + tokens)
        number = 2 if half else 4
        layer = rows * (tokens * position + 2 * number * lm.head_width * before)
        if frozen:
            layer += self.cast(lm.width * (2 * lm.head_width + 2 * lm.kv_width + 3 * lm.mlp_width))
        ends = rows * tokens * 8 * lm.width
        if not self.loop.gradient_checkpointing:
            return Saved(ends + lm.num_layers * layer)
        cached = 2 * number * lm.kv_width * (2 * before + tokens)
        return Saved(ends + lm.num_layers * rows * (4 * lm.width * tokens + cached), layer)

    def cached(self, rows: Count, tokens: Count) -> Count:
        """Keys and values of `rows` rows in all, of `tokens` positions each."""
        return rows * tokens * 2 * self.lm.num_layers * self.lm.kv_width * (2 if self.half else 4)

    def decoded(self, prefixes: Count, before: Count, repeats: int, longest: Count, at_once: int) -> Count:
        """Keys and values while texts are decoded, `repeats` behind each of the prefixes of a problem, `at_once` of the
        batch's at a time (0: all): those of the prefixes, and of the texts with what stands before them, one layer's
        twice, for they are copied when they grow.
        """
        rows = prefixes * self.loop.batch_size
        texts = min(at_once or rows * repeats, rows * repeats)
        return self.cached(rows, before) + self.cached(texts, before + longest) * (1 + 1 / self.lm.num_layers)

    def head(self, tokens: Count, frozen: bool = False) -> Saved:
        """Of the LM head on `tokens` positions, and of their log-probabilities."""
        number, tokens = 3 if self.half else 4, tokens * self.loop.micro_batch_size
        weights = self.cast(self.lm.vocab_size * self.lm.width) if frozen else 0
        return Saved(number * tokens * (2 * self.lm.vocab_size + self.lm.width) + weights)

    def text(self, rows: Count, tokens: Count, before: Count = 0, frozen: bool = False) -> Saved:
        """Of `rows` texts of `tokens` tokens each, behind `before` cached positions."""
        return self.body(rows, tokens, before, frozen) + self.head(rows * tokens, frozen)

    def texts(self, rows: int, tokens: Count, before: Count, at_once: int, frozen: bool = False) -> Saved:
        """Of sampled texts, where `at_once` > 0 in passes of so many, which are computed again as a whole."""
        if not at_once or rows * self.loop.micro_batch_size <= at_once:
            return self.text(rows, tokens, before, frozen)
        return self.piece().text(at_once, tokens, before, frozen).recomputed()

    def piece(self) -> "Passes":
        """For rows of one problem that are computed again as a whole, not layer by layer."""
        return replace(self, loop=replace(self.loop, batch_size=1, micro_batch_size=1, gradient_checkpointing=False))


class Stages:
    """The needs of one problem in each stage of a pipeline."""

    def __init__(self, pipeline: Pipeline, size: Lengths):
        self.pipeline, self.size = pipeline, size
        vocab = size.characters + NUM_SPECIAL
        self.lm, self.helper = (lm_shape(stage.backbone, vocab) for stage in (pipeline.sft, pipeline.dlr_warmup))
        main, own = pipeline.dlr_warmup.main, str(pipeline.sft.out_dir / "final")
        self.main = self.lm if main == own else lm_shape(BackboneConfig(name_or_path=main), 0)
        self.main_is_half = pipeline.dlr_warmup.main_dtype == "bfloat16"
        self.block = pipeline.vae.vae.num_latents + 2
        """Positions of a finished block: its latents, `<bot>` and `<eot>`."""
        self.copy = pipeline.vae.vae.num_latents + 1
        """Positions of a noisy copy: its latents and the time."""
        self.starts = [size.question + i * self.block for i in range(size.blocks)]
        self.end = size.question + size.blocks * self.block

    def passes(self, stage: str, lm: LmShape | None = None) -> Passes:
        """Of the pipeline's language model, or of another, in a stage."""
        return Passes(lm or self.lm, getattr(self.pipeline, stage).loop)

    def of_main(self, stage: str) -> Passes:
        """Of DLR's main model."""
        return replace(self.passes(stage, self.main), half_weights=self.main_is_half)

    def written(self) -> dict[str, int]:
        """Parameters of the model that each stage leaves."""
        p, assistant, with_vae = self.lm.num_parameters, self.helper.num_parameters, 3 * self.lm.num_parameters
        return {
            "sft": p,
            "vae": 2 * p,
            **dict.fromkeys(("reasoner", "rollout", "rl"), with_vae),
            "grpo": p,
            "dlr-warmup": assistant,
            "dlr": assistant + self.main.num_parameters * self.pipeline.dlr.train_main,
        }

    def latents(self) -> int:
        """Bytes of the cached posteriors of the training set."""
        vae, max_blocks = self.pipeline.vae.vae, self.pipeline.reasoner.max_blocks
        problems = self.size.problems or self.pipeline.sft.data.num_train
        return 2 * 2 * problems * max_blocks * vae.num_latents * vae.latent_width

    def sft(self) -> Need:
        size, p, passes = self.size, self.lm.num_parameters, self.passes("sft")
        tokens = size.question + size.target
        return Need(p, p, passes.body(1, tokens) + passes.head(size.target), tokens)

    def vae(self) -> Need:
        size, p, vae, passes = self.size, self.lm.num_parameters, self.pipeline.vae.vae, self.passes("vae")
        tokens = size.block + vae.num_latents
        saved = (passes.body(1, tokens) * 2 + passes.head(size.block)) * size.blocks
        return Need(2 * p, p * (1 + (vae.decoder == "full")), saved, 2 * size.blocks * tokens)

    def reasoner(self) -> Need:
        size, p, passes = self.size, self.lm.num_parameters, self.passes("reasoner")
        clean, noisy = self.end + size.answer, self.pipeline.reasoner.loss.noise_draws * size.blocks * self.copy
        saved = passes.body(1, clean) + passes.body(1, noisy, clean) + passes.head(size.answer)
        return Need(3 * p, p, saved, clean + noisy)

    def rollout(self) -> Need:
        size, p, config, passes = self.size, self.lm.num_parameters, self.pipeline.rollout, self.passes("rollout")
        noisy = config.loss.noise_draws * self.copy
        saved = passes.body(1, size.question) + passes.text(1, size.answer, self.end)
        for start in self.starts:
            saved += passes.body(1, noisy, start) + passes.body(1, self.block, start)
            saved += (
                passes.piece().body(passes.loop.micro_batch_size, self.copy, start).recomputed()
            )  # a step of denoising
        denoised = config.rollout.num_steps * self.copy
        return Need(3 * p, p, saved, self.end + size.answer + size.blocks * (noisy + denoised))

    def rl(self) -> Need:
        size, p, policy, passes = self.size, self.lm.num_parameters, self.pipeline.rl.policy, self.passes("rl")
        latents, texts = policy.num_latents, policy.num_latents * policy.texts_per_latent
        steps = max(1, policy.num_replayed())
        copies, at_once = latents * steps, policy.replay_copies
        longest = self.pipeline.reasoner.max_answer_tokens
        saved = passes.body(1, size.question)
        for start in self.starts if policy.alpha > 0 else ():
            if at_once and copies * passes.loop.micro_batch_size > at_once:
                saved += passes.piece().body(1, at_once * self.copy, start).recomputed()
            else:
                saved += passes.body(1, copies * self.copy, start)
        for start in self.starts if policy.alpha < 1 else self.starts[:-1]:  # the last one is read for texts only
            saved += passes.body(latents, self.block, start)
        if policy.alpha < 1:
            saved += passes.body(latents, 1, self.end)
            saved += passes.texts(texts, longest, self.end + 1, policy.replay_texts)
        drawn = latents * size.blocks * (steps + policy.num_steps) * self.copy
        sampled = passes.decoded(latents, self.end + 1, policy.texts_per_latent, longest, policy.rollout_texts)
        return Need(p * (3 + bool(policy.beta)), p, saved, drawn + texts * size.answer, sampled=sampled)

    def grpo(self) -> Need:
        size, p, policy, passes = self.size, self.lm.num_parameters, self.pipeline.grpo.policy, self.passes("grpo")
        texts, longest = policy.num_generations, policy.max_completion_length
        saved = passes.body(1, size.question) + passes.texts(texts, longest, size.question, policy.replay_texts)
        sampled = passes.decoded(1, size.question, texts, longest, policy.rollout_texts)
        return Need(p * (1 + bool(policy.beta)), p, saved, 2 * texts * size.target, sampled=sampled)

    def dlr_warmup(self) -> Need:
        size, helper, main = self.size, self.passes("dlr_warmup", self.helper), self.of_main("dlr_warmup")
        latents = self.pipeline.dlr_warmup.assistant.num_latents
        read, asked = size.question + size.target + latents, size.question + 1
        saved = helper.body(1, read) + helper.body(1, asked) + helper.body(1, latents - 1, asked)
        saved += main.body(1, latents + 1, size.question, frozen=True)
        saved += main.text(1, size.target, size.question + latents + 1, frozen=True)
        trained, frozen = 2 * self.helper.num_parameters, self.main.num_parameters
        return Need(frozen + trained, trained, saved, 2 * read + asked + latents, frozen * self.main_is_half)

    def dlr(self) -> Need:
        size, policy = self.size, self.pipeline.dlr.policy
        helper, main = self.passes("dlr", self.helper), self.of_main("dlr")
        latents, asked = self.pipeline.dlr_warmup.assistant.num_latents, size.question + 1
        drawn, decoded = policy.num_generations, policy.num_decoded
        at_once = policy.replay_trajectories
        in_pieces = 0 < at_once < drawn * helper.loop.micro_batch_size
        rows, reader = (at_once, helper.piece()) if in_pieces else (drawn, helper)
        replays = [reader.body(rows, latents - 1, asked)]
        if policy.gamma:  # drawn again, one latent after another
            replays.append(sum((reader.body(rows, 1, asked + i) for i in range(latents - 1)), Saved()))
        saved = helper.body(1, asked)
        for replay in replays:
            saved += replay.recomputed() if in_pieces else replay
        longest = self.pipeline.dlr_warmup.assistant.max_answer_tokens
        if policy.text_weight:
            saved += main.body(decoded, latents + 1, size.question, frozen=True)
            saved += main.texts(decoded, longest, size.question + latents + 1, at_once, frozen=True)
        p, frozen = self.helper.num_parameters, self.main.num_parameters
        tokens = 3 * drawn * latents + decoded * (size.target + latents)
        sampled = max(
            helper.cached(drawn * helper.loop.batch_size, asked + latents - 1),
            main.decoded(decoded, size.question + latents + 1, 1, longest, policy.rollout_texts),
        )
        return Need(frozen + p * (1 + bool(policy.beta)), p, saved, tokens, frozen * self.main_is_half, sampled)


def estimates(pipeline: Pipeline, size: Lengths | None) -> dict[str, Estimate]:
    """What each stage needs of one process that takes the whole batch in micro-batches, and of the disk; without
    activations and tokens where no lengths are known.
    """
    stages = Stages(pipeline, size or UNKNOWN)
    written = stages.written()

    def estimate(stage: str, need: Need) -> Estimate:
        loop: LoopConfig = getattr(pipeline, stage.replace("-", "_")).loop
        averaged = bool(loop.optim.ema_decay)
        state = 4 * need.loaded - 2 * need.in_half + 4 * need.trainable * (3 + averaged)
        checkpoint, latents = 4 * need.trainable * (3 + averaged), stages.latents() * (stage == "reasoner")
        disk = 4 * written[stage] + checkpoint + latents, (loop.keep_checkpoints + 1) * checkpoint + latents
        if size is None:
            return Estimate(need.loaded, need.trainable, state, None, None, None, *disk)
        activations = need.saved.kept + need.saved.again
        if loop.precision == "bf16":
            activations += 2 * need.trainable  # copies of weights that autocast keeps
        tokens = int(need.tokens * loop.batch_size)
        return Estimate(need.loaded, need.trainable, state, int(activations), int(need.sampled), tokens, *disk)

    return {stage: estimate(stage, getattr(stages, stage.replace("-", "_"))()) for stage in written}
