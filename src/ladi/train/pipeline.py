"""From the sizes of an experiment to the Config of each of its stages."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ladi.inference.evaluate import EvalConfig
from ladi.models.assistant import AssistantConfig
from ladi.models.backbone import BackboneConfig, Dtype
from ladi.models.generation import SampleConfig
from ladi.models.vae import ThoughtVAEConfig
from ladi.tasks import TaskConfig
from ladi.train import dlr, dlr_warmup, grpo, reasoner, rl, rollout, sft, vae
from ladi.train.data import DataConfig
from ladi.train.loop import LoopConfig
from ladi.train.optim import OptimConfig
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
    """Longest answer that a reasoner's text head writes."""
    max_text_tokens: int = 0
    """Longest text, thought and answer, of a token-level model and of DLR's main model; 0 means `max_answer_tokens`
    where the answer spells the thought, else 4 times as many."""
    num_train: int = 300_000
    """0 takes all training problems of a finite task."""
    batch_size: int = 256
    micro_batch_size: int = 256
    sft_steps: int
    vae_steps: int
    beta_warmup_steps: int = 0
    context_warmup_steps: int = 0
    reasoner_steps: int
    rollout_steps: int
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
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
    """Of LaDi-RL."""
    grpo_lr: float = 5e-5
    """Of token GRPO."""
    rl_questions: int = 24
    rl_micro_batch_size: int = 0
    """Questions of a replay at a time; 0 means all."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    main: str = ""
    """DLR's main model; empty takes that of the stage `sft`."""
    main_dtype: Dtype = "float32"
    assistant_backbone: BackboneConfig = field(default_factory=BackboneConfig)
    assistant: AssistantConfig = field(default_factory=AssistantConfig)
    warmup_steps: int = 1000
    """Of DLR's warm start."""
    warmup_free_steps: int = 250
    warmup_beta_steps: int = 350
    warmup_lr: float = 2e-3
    dlr_policy: dlr.PolicyConfig = field(default_factory=dlr.PolicyConfig)
    dlr_lr: float = 3e-5
    projection_lr: float = 1e-4


def pipeline(sizes: Sizes, root: Path, seed: int) -> Pipeline:
    """The stages of one experiment below `root`."""
    data = DataConfig(task=sizes.task, num_train=sizes.num_train)
    latents_path = root / "latents.safetensors"
    memory: dict[str, Any] = {
        "precision": sizes.precision,
        "gradient_checkpointing": sizes.gradient_checkpointing,
    }

    def loop_config(steps: int, lr: float) -> LoopConfig:
        optim = OptimConfig(name=sizes.optimizer, lr=lr, warmup_steps=min(100, max(1, steps // 10)))
        return LoopConfig(
            steps=steps,
            batch_size=sizes.batch_size,
            micro_batch_size=sizes.micro_batch_size,
            seed=seed,
            optim=optim,
            **memory,
        )

    rl_optim = OptimConfig(lr=sizes.rl_lr, warmup_steps=5, final_lr_fraction=1.0, weight_decay=0.0, ema_decay=0.0)
    rl_loop = LoopConfig(
        steps=sizes.rl_steps,
        batch_size=sizes.rl_questions,
        micro_batch_size=sizes.rl_micro_batch_size or sizes.rl_questions,
        seed=seed,
        optim=rl_optim,
        log_every=1,
        checkpoint_every=10,
        **memory,
    )
    num_generations = sizes.policy.num_latents * sizes.policy.texts_per_latent
    longest = sizes.max_text_tokens or sizes.max_answer_tokens * (1 if sizes.task.cot_in_answer else 4)

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
            beta_warmup_steps=sizes.beta_warmup_steps,
            context_warmup_steps=sizes.context_warmup_steps,
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
            policy=grpo.PolicyConfig(
                num_generations=num_generations,
                max_completion_length=longest,
                rollout_texts=sizes.policy.rollout_texts,
                replay_texts=sizes.policy.replay_texts,
            ),
            loop=replace(rl_loop, optim=replace(rl_optim, lr=sizes.grpo_lr)),
        ),
        dlr_warmup=dlr_warmup.Config(
            out_dir=root / "dlr_warmup",
            data=data,
            main=sizes.main or str(root / "sft" / "final"),
            main_dtype=sizes.main_dtype,
            backbone=sizes.assistant_backbone,
            assistant=replace(sizes.assistant, max_answer_tokens=longest),
            free_steps=sizes.warmup_free_steps,
            beta_warmup_steps=sizes.warmup_beta_steps,
            loop=loop_config(sizes.warmup_steps, sizes.warmup_lr),
        ),
        dlr=dlr.Config(
            out_dir=root / "dlr",
            data=data,
            model_dir=root / "dlr_warmup" / "final",
            projection_lr=sizes.projection_lr,
            policy=replace(
                sizes.dlr_policy, rollout_texts=sizes.dlr_policy.rollout_texts or sizes.policy.rollout_texts
            ),
            loop=replace(rl_loop, optim=replace(rl_optim, lr=sizes.dlr_lr)),
        ),
        eval=EvalConfig(
            model_dir=root / "rollout" / "final",
            task=sizes.task,
            max_text_tokens=max(128, longest),
            sample=SampleConfig(),
            latent_use_samples=8,
            rows_at_once=sizes.policy.rollout_texts or EvalConfig.rows_at_once,
        ),
    )
