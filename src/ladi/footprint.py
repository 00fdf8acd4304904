"""What each stage holds in memory and how many tokens an update takes, from the models' shapes: nothing is loaded.

Weights, gradients, the optimizer's moments and their average are counted in fp32, as the loop keeps them, and beside
them what the backward pass saves of one micro-batch, operation by operation, in fp32 (under bf16 a little over half of
that). Texts that are yet to be sampled count with the greatest length allowed: one such text pads its whole batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    """None where the data could not be read; so too the tokens."""
    tokens_per_update: int | None


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


UNKNOWN = Lengths(question=0.0, target=0.0, answer=0.0, blocks=1, block=0.0, characters=100)
"""Where the data cannot be read: nothing but the sizes of models follows from it."""


@dataclass(frozen=True)
class Need:
    """Of one problem: models loaded and trained (parameters), numbers saved for the backward pass, tokens."""

    loaded: int
    trainable: int
    saved: Count
    tokens: Count


def lengths(pipeline: Pipeline) -> Lengths:
    """The longest among the first problems of the training split.

    Raises:
        ValueError, OSError: if the data cannot be read.
    """
    data, is_named = pipeline.sft.data, bool(pipeline.sft.backbone.name_or_path)
    task, per_token = data.task, CHARACTERS_PER_TOKEN if is_named else 1.0
    problems = [task.problem("train", i) for i in range(min(SAMPLE, data.num_train))]
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
    )


def body(lm: LmShape, rows: Count, tokens: Count, before: Count = 0, frozen: bool = False) -> Count:
    """Numbers saved of `rows` rows of `tokens` positions each, behind `before` cached ones; without the LM head.

    A layer saves, per position, 6 vectors of the model's width (two norms, two residuals), 4 of the MLP's, the heads'
    queries, keys and values after rotation and repetition, where heads are normalised those before too, and its mask;
    per row the keys and values of what stands before. A frozen layer leaves out what only its weights' gradients need:
    the normalised vectors and the inputs of its matrices.
    """
    heads = (6 if lm.normalises_heads else 4) * lm.head_width + 2 * lm.normalises_heads * lm.kv_width
    layer = 6 * lm.width + 4 * lm.mlp_width + heads
    if frozen:
        layer -= 4 * lm.width + lm.mlp_width + lm.normalises_heads * (lm.head_width + lm.kv_width)
    layer += lm.num_heads + before + tokens
    return rows * (tokens * (lm.num_layers * layer + 2 * lm.width) + 2 * lm.num_layers * lm.head_width * before)


def head(lm: LmShape, tokens: Count) -> Count:
    """Numbers saved of the LM head on `tokens` positions and of their log-probabilities."""
    return tokens * (2 * lm.vocab_size + lm.width)


def text(lm: LmShape, rows: Count, tokens: Count, before: Count = 0, frozen: bool = False) -> Count:
    """Numbers saved of `rows` texts of `tokens` tokens each, behind `before` cached positions."""
    return body(lm, rows, tokens, before, frozen) + head(lm, rows * tokens)


class Stages:
    """The needs of one problem in each stage of a pipeline."""

    def __init__(self, pipeline: Pipeline, size: Lengths):
        self.pipeline, self.size = pipeline, size
        vocab = size.characters + NUM_SPECIAL
        self.lm, self.helper = (lm_shape(stage.backbone, vocab) for stage in (pipeline.sft, pipeline.dlr_warmup))
        main, own = pipeline.dlr_warmup.main, str(pipeline.sft.out_dir / "final")
        self.main = self.lm if main == own else lm_shape(BackboneConfig(name_or_path=main), 0)
        self.block = pipeline.vae.vae.num_latents + 2
        """Positions of a finished block: its latents, `<bot>` and `<eot>`."""
        self.copy = pipeline.vae.vae.num_latents + 1
        """Positions of a noisy copy: its latents and the time."""
        self.starts = [size.question + i * self.block for i in range(size.blocks)]
        self.end = size.question + size.blocks * self.block

    def sft(self) -> Need:
        size, p = self.size, self.lm.num_parameters
        tokens = size.question + size.target
        return Need(p, p, body(self.lm, 1, tokens) + head(self.lm, size.target), tokens)

    def vae(self) -> Need:
        size, p, vae = self.size, self.lm.num_parameters, self.pipeline.vae.vae
        tokens = size.block + vae.num_latents
        saved = size.blocks * (2 * body(self.lm, 1, tokens) + head(self.lm, size.block))
        return Need(2 * p, p * (1 + (vae.decoder == "full")), saved, 2 * size.blocks * tokens)

    def reasoner(self) -> Need:
        size, p = self.size, self.lm.num_parameters
        clean, noisy = self.end + size.answer, self.pipeline.reasoner.loss.noise_draws * size.blocks * self.copy
        saved = body(self.lm, 1, clean) + body(self.lm, 1, noisy, clean) + head(self.lm, size.answer)
        return Need(3 * p, p, saved, clean + noisy)

    def rollout(self) -> Need:
        size, p, config = self.size, self.lm.num_parameters, self.pipeline.rollout
        noisy = config.loss.noise_draws * self.copy
        saved = body(self.lm, 1, size.question) + text(self.lm, 1, size.answer, self.end)
        for start in self.starts:  # denoising is recomputed, a step at a time
            saved += body(self.lm, 1, noisy, start) + body(self.lm, 1, self.block, start)
        denoised = config.rollout.num_steps * self.copy
        return Need(3 * p, p, saved, self.end + size.answer + size.blocks * (noisy + denoised))

    def rl(self) -> Need:
        size, p, policy = self.size, self.lm.num_parameters, self.pipeline.rl.policy
        latents, texts = policy.num_latents, policy.num_latents * policy.texts_per_latent
        steps = policy.replay_steps or max(1, policy.num_steps - 1)
        saved = body(self.lm, 1, size.question)
        if policy.alpha > 0:
            saved += sum(body(self.lm, 1, latents * steps * self.copy, start) for start in self.starts)
        read = self.starts if policy.alpha < 1 else self.starts[:-1]  # the last block is read for the texts only
        saved += sum(body(self.lm, latents, self.block, start) for start in read)
        if policy.alpha < 1:
            saved += body(self.lm, latents, 1, self.end)
            saved += text(self.lm, texts, self.pipeline.reasoner.max_answer_tokens, self.end + 1)
        drawn = latents * size.blocks * (steps + policy.num_steps) * self.copy
        return Need(p * (3 + bool(policy.beta)), p, saved, drawn + texts * size.answer)

    def grpo(self) -> Need:
        size, p, policy = self.size, self.lm.num_parameters, self.pipeline.grpo.policy
        saved = body(self.lm, 1, size.question)
        saved += text(self.lm, policy.num_generations, policy.max_completion_length, size.question)
        return Need(p * (1 + bool(policy.beta)), p, saved, 2 * policy.num_generations * size.target)

    def dlr_warmup(self) -> Need:
        size, helper = self.size, self.helper
        latents = self.pipeline.dlr_warmup.assistant.num_latents
        read, asked = size.question + size.target + latents, size.question + 1
        saved = body(helper, 1, read) + body(helper, 1, asked) + body(helper, 1, latents - 1, asked)
        saved += body(self.main, 1, latents + 1, size.question, frozen=True)
        saved += text(self.main, 1, size.target, size.question + latents + 1, frozen=True)
        loaded, trained = self.main.num_parameters + 2 * helper.num_parameters, 2 * helper.num_parameters
        return Need(loaded, trained, saved, 2 * read + asked + latents)

    def dlr(self) -> Need:
        size, helper, policy = self.size, self.helper, self.pipeline.dlr.policy
        latents, asked = self.pipeline.dlr_warmup.assistant.num_latents, size.question + 1
        drawn, decoded = policy.num_generations, policy.num_decoded
        saved = body(helper, 1, asked) + body(helper, drawn, latents - 1, asked)
        if policy.gamma:  # drawn again, one latent after another
            saved += body(helper, 1, asked) + sum(body(helper, drawn, 1, asked + i) for i in range(latents - 1))
        if policy.text_weight:
            longest = self.pipeline.dlr_warmup.assistant.max_answer_tokens
            saved += body(self.main, decoded, latents + 1, size.question, frozen=True)
            saved += text(self.main, decoded, longest, size.question + latents + 1, frozen=True)
        p = helper.num_parameters
        tokens = 3 * drawn * latents + decoded * (size.target + latents)
        return Need(self.main.num_parameters + p * (1 + bool(policy.beta)), p, saved, tokens)


def estimates(pipeline: Pipeline, size: Lengths | None) -> dict[str, Estimate]:
    """What each stage needs of one process that takes the whole batch in micro-batches; without activations and tokens
    where no lengths are known.
    """
    stages = Stages(pipeline, size or UNKNOWN)

    def estimate(need: Need, loop: LoopConfig) -> Estimate:
        averaged = bool(loop.optim.ema_decay)
        state = 4 * need.loaded + 4 * need.trainable * (3 + averaged)
        if size is None:
            return Estimate(need.loaded, need.trainable, state, None, None)
        saved, tokens = 4 * need.saved * loop.micro_batch_size, need.tokens * loop.batch_size
        return Estimate(need.loaded, need.trainable, state, int(saved), int(tokens))

    names = ("sft", "vae", "reasoner", "rollout", "rl", "grpo", "dlr_warmup", "dlr")
    needs: dict[str, Callable[[], Need]] = {name: getattr(stages, name) for name in names}
    return {name.replace("_", "-"): estimate(need(), getattr(pipeline, name).loop) for name, need in needs.items()}
