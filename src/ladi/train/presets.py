"""Named experiments: every stage's Config, from one function a preset.

A preset is a `Pipeline`; its stages read one another's `final/` folders below one root.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ladi.inference.evaluate import EvalConfig
from ladi.models.assistant import AssistantConfig
from ladi.models.backbone import BackboneConfig
from ladi.models.generation import SampleConfig
from ladi.models.vae import ThoughtVAEConfig
from ladi.tasks import TaskConfig
from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.train import dlr, dlr_warmup, grpo, reasoner, rl, rollout, sft, vae
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig, OptimConfig
from ladi.train.reasoner import LossConfig
from ladi.train.rl import PolicyConfig
from ladi.train.rollout import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """All stages of an experiment, in order, and its evaluation."""

    sft: sft.Config
    vae: vae.Config
    reasoner: reasoner.Config
    rollout: rollout.Config
    rl: rl.Config
    grpo: grpo.Config
    dlr_warmup: dlr_warmup.Config
    dlr: dlr.Config
    eval: EvalConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What differs between presets."""

    task: TaskConfig
    backbone: BackboneConfig
    vae: ThoughtVAEConfig
    max_blocks: int
    max_answer_tokens: int
    num_train: int = 300_000
    batch_size: int = 256
    micro_batch_size: int = 256
    sft_steps: int
    vae_steps: int
    reasoner_steps: int
    rollout_steps: int
    optimizer: Literal["adamw", "muon"] = "muon"
    """Of the supervised stages; reinforcement learning takes AdamW."""
    sft_lr: float = 3e-3
    vae_lr: float = 3e-3
    reasoner_lr: float = 4e-3
    rollout_lr: float = 3e-4
    loss: LossConfig = field(default_factory=LossConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rl_steps: int = 100
    rl_lr: float = 5e-5
    rl_questions: int = 24
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    main: str = ""
    """DLR's main model; empty takes that of the stage `sft`."""
    assistant_backbone: BackboneConfig = field(default_factory=BackboneConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    warmup_steps: int = 1000
    warmup_lr: float = 2e-3
    dlr_policy: dlr.PolicyConfig = field(default_factory=dlr.PolicyConfig)
    dlr_lr: float = 3e-5
    projection_lr: float = 1e-4


def pipeline(sizes: Sizes, root: Path, seed: int) -> Pipeline:
    """The stages of one experiment below `root`."""
    data = DataConfig(task=sizes.task, num_train=sizes.num_train)
    latents_path = root / "latents.safetensors"

    def loop_config(steps: int, lr: float) -> LoopConfig:
        optim = OptimConfig(name=sizes.optimizer, lr=lr, warmup_steps=min(100, max(1, steps // 10)))
        return LoopConfig(
            steps=steps,
            batch_size=sizes.batch_size,
            micro_batch_size=sizes.micro_batch_size,
            seed=seed,
            optim=optim,
        )

    rl_optim = OptimConfig(lr=sizes.rl_lr, warmup_steps=5, final_lr_fraction=1.0, weight_decay=0.0, ema_decay=0.0)
    rl_loop = LoopConfig(
        steps=sizes.rl_steps,
        batch_size=sizes.rl_questions,
        micro_batch_size=sizes.rl_questions,
        seed=seed,
        optim=rl_optim,
        log_every=1,
        checkpoint_every=10,
    )
    num_generations = sizes.policy.num_latents * sizes.policy.texts_per_latent
    longest = sizes.max_answer_tokens if sizes.task.cot_in_answer else 4 * sizes.max_answer_tokens

    return Pipeline(
        sft=sft.Config(
            out_dir=root / "sft",
            data=data,
            backbone=sizes.backbone,
            loop=loop_config(sizes.sft_steps, sizes.sft_lr),
        ),
        vae=vae.Config(
            out_dir=root / "vae",
            data=data,
            backbone_dir=root / "sft" / "final",
            vae=sizes.vae,
            loop=loop_config(sizes.vae_steps, sizes.vae_lr),
        ),
        reasoner=reasoner.Config(
            out_dir=root / "reasoner",
            data=data,
            vae_dir=root / "vae" / "final",
            backbone_dir=root / "sft" / "final",
            latents_path=latents_path,
            max_blocks=sizes.max_blocks,
            max_answer_tokens=sizes.max_answer_tokens,
            loss=sizes.loss,
            loop=loop_config(sizes.reasoner_steps, sizes.reasoner_lr),
        ),
        rollout=rollout.Config(
            out_dir=root / "rollout",
            data=data,
            reasoner_dir=root / "reasoner" / "final",
            vae_dir=root / "vae" / "final",
            latents_path=latents_path,
            loss=sizes.loss,
            rollout=sizes.rollout,
            loop=loop_config(sizes.rollout_steps, sizes.rollout_lr),
        ),
        rl=rl.Config(
            out_dir=root / "rl", data=data, model_dir=root / "reasoner" / "final", policy=sizes.policy, loop=rl_loop
        ),
        grpo=grpo.Config(
            out_dir=root / "grpo",
            data=data,
            model_dir=root / "sft" / "final",
            policy=grpo.PolicyConfig(num_generations=num_generations, max_completion_length=longest),
            loop=rl_loop,
        ),
        dlr_warmup=dlr_warmup.Config(
            out_dir=root / "dlr_warmup",
            data=data,
            main=sizes.main or str(root / "sft" / "final"),
            backbone=sizes.assistant_backbone,
            assistant=replace(sizes.assistant, max_answer_tokens=longest),
            loop=loop_config(sizes.warmup_steps, sizes.warmup_lr),
        ),
        dlr=dlr.Config(
            out_dir=root / "dlr",
            data=data,
            model_dir=root / "dlr_warmup" / "final",
            projection_lr=sizes.projection_lr,
            policy=sizes.dlr_policy,
            loop=replace(rl_loop, optim=replace(rl_optim, lr=sizes.dlr_lr)),
        ),
        eval=EvalConfig(
            model_dir=root / "rollout" / "final", task=sizes.task, sample=SampleConfig(), latent_use_samples=8
        ),
    )


def cd3_tiny(root: Path = Path("runs/cd3_tiny"), seed: int = 0) -> Pipeline:
    """Countdown-3, inputs to 50, 0.9M parameters: three quarters of an hour on two cores."""
    sizes = Sizes(
        task=Countdown(size=3, max_input=50),
        backbone=BackboneConfig(seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, decoder="full", beta=0.05, max_block_tokens=16),
        max_blocks=2,
        max_answer_tokens=32,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=3000,
        vae_steps=3000,
        reasoner_steps=8000,
        rollout_steps=800,
        rollout=RolloutConfig(start_time=(0.2, 0.5), denoising_gradient=False),
    )
    return pipeline(sizes, root, seed)


def cd4_tiny(root: Path = Path("runs/cd4_tiny"), seed: int = 0) -> Pipeline:
    """Countdown-4, inputs to 50, 0.9M parameters, small batches: about an hour on two cores."""
    sizes = Sizes(
        task=Countdown(size=4, max_input=50),
        backbone=BackboneConfig(seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, decoder="full", beta=0.05, max_block_tokens=16),
        max_blocks=3,
        max_answer_tokens=48,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=5000,
        vae_steps=4000,
        reasoner_steps=10_000,
        rollout_steps=800,
        sft_lr=1e-3,
        vae_lr=1e-3,
        reasoner_lr=1e-3,
        rollout_lr=2e-4,
        rollout=RolloutConfig(start_time=(0.2, 0.5), denoising_gradient=False),
    )
    return pipeline(sizes, root, seed)


def cd4_small(root: Path = Path("runs/cd4_small"), seed: int = 0) -> Pipeline:
    """Countdown-4, inputs to 100, 7.6M parameters: hours on two cores, minutes on a GPU."""
    sizes = Sizes(
        task=Countdown(size=4),
        backbone=BackboneConfig(width=320, num_layers=6, num_heads=10, mlp_width=896, seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, decoder="full", beta=0.05, max_block_tokens=16),
        max_blocks=3,
        max_answer_tokens=48,
        num_train=500_000,
        sft_steps=5000,
        vae_steps=3000,
        reasoner_steps=20_000,
        rollout_steps=2000,
        sft_lr=1e-3,
        vae_lr=1e-3,
        reasoner_lr=1e-3,
        rollout=RolloutConfig(start_time=(0.2, 0.5), denoising_gradient=False),
    )
    return pipeline(sizes, root, seed)


def arithmetic_tiny(root: Path = Path("runs/arithmetic_tiny"), seed: int = 0) -> Pipeline:
    """Arithmetic chains, 0.9M parameters: an easier task for tests and ablations."""
    sizes = Sizes(
        task=Arithmetic(),
        backbone=BackboneConfig(seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, decoder="full", beta=0.05, max_block_tokens=24),
        max_blocks=4,
        max_answer_tokens=8,
        num_train=100_000,
        sft_steps=500,
        vae_steps=500,
        reasoner_steps=1000,
        rollout_steps=200,
    )
    return pipeline(sizes, root, seed)


def dlr_cd3(root: Path = Path("runs/dlr_cd3"), seed: int = 0) -> Pipeline:
    """DLR on Countdown-3: a 7.6M main model (its stage `sft`) steered by a 0.9M assistant."""
    return dlr_pipeline(Countdown(size=3, max_input=50), 32, root, seed)


def dlr_arithmetic(root: Path = Path("runs/dlr_arithmetic"), seed: int = 0) -> Pipeline:
    """DLR on arithmetic chains: a 7.6M main model steered by a 0.9M assistant."""
    return dlr_pipeline(Arithmetic(), 16, root, seed)


def dlr_pipeline(task: TaskConfig, max_answer_tokens: int, root: Path, seed: int) -> Pipeline:
    """A small DLR experiment: only the stages `sft`, `grpo`, `dlr-warmup` and `dlr` are meant to be run."""
    sizes = Sizes(
        task=task,
        backbone=BackboneConfig(width=320, num_layers=6, num_heads=10, mlp_width=896, seed=seed),
        vae=ThoughtVAEConfig(decoder="full", beta=0.05, max_block_tokens=24),
        max_blocks=4,
        max_answer_tokens=max_answer_tokens,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=1500,
        vae_steps=1500,
        reasoner_steps=4000,
        rollout_steps=400,
        assistant_backbone=BackboneConfig(seed=seed + 100),
        assistant=AssistantConfig(num_latents=8, latent_width=32, std=0.3),
        warmup_steps=1000,
        dlr_policy=dlr.PolicyConfig(num_generations=32, num_decoded=32),
        dlr_lr=1e-4,
        projection_lr=3e-4,
    )
    return pipeline(sizes, root, seed)


def dlr_paper(root: Path = Path("runs/dlr_paper"), seed: int = 0) -> Pipeline:
    """The settings of DLR's table 2 on GSM8K: LLaMA-2-7B, a 1.3B LLaMA-2 assistant, 8 GPUs x 4 questions, 3 epochs.

    The paper names no checkpoint of its assistant; Sheared-LLaMA is LLaMA-2 pruned to that size. It does not say how
    the 18 % are chosen either: the filter is the value head here.
    """
    num_train, questions = 7473, 8 * 4
    sizes = Sizes(
        task=Gsm8k(),
        backbone=BackboneConfig(name_or_path=LLAMA2_7B),
        vae=ThoughtVAEConfig(max_block_tokens=256),
        max_blocks=10,
        max_answer_tokens=128,
        num_train=num_train,
        batch_size=32,
        micro_batch_size=4,
        sft_steps=700,
        vae_steps=700,
        reasoner_steps=7000,
        rollout_steps=700,
        optimizer="adamw",
        sft_lr=1e-5,
        vae_lr=1e-5,
        reasoner_lr=1e-5,
        rollout_lr=1e-5,
        rl_questions=questions,
        main=LLAMA2_7B,
        assistant_backbone=BackboneConfig(name_or_path="princeton-nlp/Sheared-LLaMA-1.3B"),
        assistant=AssistantConfig(num_latents=32, latent_width=512),
        warmup_steps=num_train // questions,
        warmup_lr=3e-5,
        rl_steps=3 * num_train // questions,
        dlr_policy=dlr.PolicyConfig(
            num_generations=64,
            num_decoded=12,  # K/G = 0.18
            filter="value",
            beta=0.01,
            gamma=0.1,
            contrast="projected",
            format="tags",
            format_weight=0.5,
        ),
        dlr_lr=3e-5,
        projection_lr=1e-4,
    )
    return pipeline(sizes, root, seed)


LLAMA2_7B = "meta-llama/Llama-2-7b-hf"


def jsonl_small(root: Path = Path("runs/jsonl_small"), seed: int = 0) -> Pipeline:
    """Your own data: `--data.task.path FILE`, and `--backbone.name-or-path MODEL` to start from a pretrained one."""
    sizes = Sizes(
        task=Jsonl(),
        backbone=BackboneConfig(width=320, num_layers=6, num_heads=10, mlp_width=896, max_positions=2048, seed=seed),
        vae=ThoughtVAEConfig(num_latents=4, latent_width=64, decoder="full", beta=0.05, max_block_tokens=256),
        max_blocks=8,
        max_answer_tokens=64,
        num_train=1000,
        batch_size=64,
        micro_batch_size=16,
        sft_steps=2000,
        vae_steps=2000,
        reasoner_steps=10_000,
        rollout_steps=1000,
        sft_lr=3e-4,
        vae_lr=3e-4,
        reasoner_lr=3e-4,
        rollout_lr=1e-4,
    )
    return pipeline(sizes, root, seed)


PRESETS: dict[str, Callable[..., Pipeline]] = {
    "cd3_tiny": cd3_tiny,
    "cd4_tiny": cd4_tiny,
    "cd4_small": cd4_small,
    "arithmetic_tiny": arithmetic_tiny,
    "dlr_cd3": dlr_cd3,
    "dlr_arithmetic": dlr_arithmetic,
    "dlr_paper": dlr_paper,
    "jsonl_small": jsonl_small,
}
