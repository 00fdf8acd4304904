"""Named experiments: every stage's Config, from one function a preset.

A preset is a `Pipeline`; its stages read one another's `final/` folders below one root.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ladi.models.assistant import AssistantConfig
from ladi.models.backbone import BackboneConfig
from ladi.models.vae import ThoughtVAEConfig
from ladi.tasks import TaskConfig
from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.countdown import Countdown
from ladi.tasks.gym import Gym
from ladi.tasks.jsonl import Jsonl
from ladi.train import dlr
from ladi.train.pipeline import Pipeline, Sizes, pipeline
from ladi.train.presets_large import (
    dlr_gsm8k_llama2_7b,
    dlr_paper,
    jsonl_qwen3_600m,
    ladi_rl_code_qwen3_8b,
    ladir_code_qwen3_8b,
    ladir_gsm8k_qwen3_600m,
    ladir_math_llama8b,
)
from ladi.train.reasoner import LossConfig
from ladi.train.rl import PolicyConfig
from ladi.train.rollout import RolloutConfig

BY_FLOW_LOSS = PolicyConfig(density="flow_loss", noise_level=0.0, replay_steps=5)
"""LaDi-RL with the flow-matching loss of latents for their log-density; they are drawn without noise."""


def cd3_sizes(seed: int) -> Sizes:
    """Those of `cd3_tiny`."""
    return Sizes(
        task=Countdown(size=3, max_input=50),
        backbone=BackboneConfig(seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, reads_context=True, decoder="full", beta=0.05, max_block_tokens=16),
        max_blocks=2,
        max_answer_tokens=32,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=3000,
        vae_steps=2000,
        beta_warmup_steps=600,
        loss=LossConfig(times_mean=1.0),
        reasoner_steps=8000,
        rollout_steps=800,
        rollout=RolloutConfig(start_time=(0.2, 0.5), denoising_gradient=False),
        rl_lr=2e-4,
        grpo_lr=1e-4,
    )


def cd3_tiny(root: Path = Path("runs/cd3_tiny"), seed: int = 0) -> Pipeline:
    """Countdown-3, inputs to 50, 0.9M parameters: an hour on two cores. Its latents carry a choice, not a text."""
    return pipeline(cd3_sizes(seed), root, seed)


def cd3_one_block(root: Path = Path("runs/cd3_one_block"), seed: int = 0) -> Pipeline:
    """`cd3_tiny` with the chain of thought as one block, a VAE whose decoder starts without the context, sixteen noisy
    copies a context, and LaDi-RL by the flow-matching loss.
    """
    sizes = cd3_sizes(seed)
    whole = replace(sizes.vae, block="whole", max_block_tokens=32)
    loss = replace(sizes.loss, noise_draws=16)
    sizes = replace(
        sizes, vae=whole, context_warmup_steps=600, max_blocks=1, loss=loss, policy=BY_FLOW_LOSS, rl_lr=1e-4
    )
    return pipeline(sizes, root, seed)


def cd4_sizes(seed: int) -> Sizes:
    """Those of `cd4_tiny`."""
    return Sizes(
        task=Countdown(size=4, max_input=50),
        backbone=BackboneConfig(seed=seed),
        vae=ThoughtVAEConfig(num_latents=2, reads_context=True, decoder="full", beta=0.05, max_block_tokens=16),
        max_blocks=3,
        max_answer_tokens=48,
        num_train=150_000,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=4000,
        vae_steps=1500,
        beta_warmup_steps=500,
        loss=LossConfig(times_mean=1.0),
        reasoner_steps=4000,
        rollout_steps=600,
        rollout_lr=1e-3,
        rollout=RolloutConfig(start_time=(0.2, 0.8), denoising_gradient=False),
        rl_lr=2e-4,
        grpo_lr=1e-4,
    )


def cd4_tiny(root: Path = Path("runs/cd4_tiny"), seed: int = 0) -> Pipeline:
    """Countdown-4, inputs to 50, 0.9M parameters, an hour and a half on two cores; its latents carry a choice too."""
    return pipeline(cd4_sizes(seed), root, seed)


def cd4_one_block(root: Path = Path("runs/cd4_one_block"), seed: int = 0) -> Pipeline:
    """`cd4_tiny` as `cd3_one_block` has it: one block, a decoder that starts without the context, sixteen copies.

    Measured behind `cd4_tiny`, whose later blocks read what the earlier ones came to.
    """
    sizes = cd4_sizes(seed)
    whole = replace(sizes.vae, block="whole", max_block_tokens=48)
    loss = replace(sizes.loss, noise_draws=16)
    sizes = replace(
        sizes, vae=whole, vae_steps=3000, beta_warmup_steps=900, context_warmup_steps=900, max_blocks=1, loss=loss
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
        max_text_tokens=64,
        num_train=100_000,
        sft_steps=500,
        vae_steps=500,
        reasoner_steps=1000,
        rollout_steps=200,
    )
    return pipeline(sizes, root, seed)


def dlr_cd3(root: Path = Path("runs/dlr_cd3"), seed: int = 0) -> Pipeline:
    """DLR on Countdown-3: a 7.6M main model (its stage `sft`) steered by a 0.9M assistant, the bundled AR SFT model."""
    assistant = BackboneConfig(name_or_path="assets/cd3_tiny/ar")
    return dlr_pipeline(Countdown(size=3, max_input=50), 32, assistant, root, seed)


def dlr_arithmetic(root: Path = Path("runs/dlr_arithmetic"), seed: int = 0) -> Pipeline:
    """DLR on arithmetic chains: a 7.6M main model steered by a new 0.9M assistant."""
    return dlr_pipeline(Arithmetic(), 16, BackboneConfig(seed=seed + 100), root, seed)


def dlr_pipeline(
    task: TaskConfig, max_answer_tokens: int, assistant: BackboneConfig, root: Path, seed: int
) -> Pipeline:
    """A small DLR experiment: only the stages `sft`, `grpo`, `dlr-warmup` and `dlr` are meant to be run."""
    sizes = Sizes(
        task=task,
        backbone=BackboneConfig(width=320, num_layers=6, num_heads=10, mlp_width=896, seed=seed),
        vae=ThoughtVAEConfig(decoder="full", beta=0.05, max_block_tokens=24),
        max_blocks=4,
        max_answer_tokens=max_answer_tokens,
        batch_size=64,
        micro_batch_size=64,
        sft_steps=1000,
        vae_steps=1500,
        reasoner_steps=4000,
        rollout_steps=400,
        assistant_backbone=assistant,
        assistant=AssistantConfig(num_latents=8, latent_width=8, std=1.0),
        warmup_steps=700,
        rl_steps=50,
        grpo_lr=1e-4,
        dlr_policy=dlr.PolicyConfig(num_generations=32, num_decoded=32, gamma=0.0),
        dlr_lr=3e-4,
        projection_lr=3e-4,
    )
    return pipeline(sizes, root, seed)


def jsonl_small(root: Path = Path("runs/jsonl_small"), seed: int = 0) -> Pipeline:
    """Your own data (`--data.task.path FILE`) and a new model; `jsonl_qwen3_600m` starts from a pretrained one."""
    return free_text_pipeline(Jsonl(), 0, root, seed)


def gym_small(root: Path = Path("runs/gym_small"), seed: int = 0) -> Pipeline:
    """A generator of reasoning-gym: `--data.task.dataset NAME`, `--data.task.settings JSON`; few of them have steps."""
    return free_text_pipeline(Gym(), 10_000, root, seed)


def free_text_pipeline(task: TaskConfig, num_train: int, root: Path, seed: int) -> Pipeline:
    """An experiment with questions and steps in words."""
    sizes = Sizes(
        task=task,
        backbone=BackboneConfig(width=320, num_layers=6, num_heads=10, mlp_width=896, max_positions=2048, seed=seed),
        vae=ThoughtVAEConfig(num_latents=4, latent_width=64, decoder="full", beta=0.05, max_block_tokens=256),
        max_blocks=8,
        max_answer_tokens=64,
        num_train=num_train,
        batch_size=64,
        micro_batch_size=16,
        optimizer="adamw",
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
    "cd3_one_block": cd3_one_block,
    "cd4_tiny": cd4_tiny,
    "cd4_one_block": cd4_one_block,
    "cd4_small": cd4_small,
    "arithmetic_tiny": arithmetic_tiny,
    "dlr_cd3": dlr_cd3,
    "dlr_arithmetic": dlr_arithmetic,
    "jsonl_small": jsonl_small,
    "jsonl_qwen3_600m": jsonl_qwen3_600m,
    "gym_small": gym_small,
    "ladir_gsm8k_qwen3_600m": ladir_gsm8k_qwen3_600m,
    "ladir_math_llama8b": ladir_math_llama8b,
    "ladir_code_qwen3_8b": ladir_code_qwen3_8b,
    "ladi_rl_code_qwen3_8b": ladi_rl_code_qwen3_8b,
    "dlr_paper": dlr_paper,
    "dlr_gsm8k_llama2_7b": dlr_gsm8k_llama2_7b,
}


DEFAULT = "cd3_one_block"
"""Of the commands that are given no preset."""


def preset_named(name: str) -> Callable[..., Pipeline]:
    """The preset of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[name]
