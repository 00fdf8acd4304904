"""Presets for real runs, with the papers' settings where they give them; the rest are ours and not tried here.

`max_text_tokens` is taken from the data, at 3 characters a token, not measured with the models' tokenizers (tokens are
longer, so that more fits): 256 hold 99.6 % of GSM8K's training texts and 512 all of them, DLR's tags included; 768 hold
all solutions of MATH-500; 512 hold all programs of MBPP.
"""

from dataclasses import replace
from pathlib import Path

from ladi.models.assistant import AssistantConfig
from ladi.models.backbone import BackboneConfig
from ladi.models.vae import ThoughtVAEConfig
from ladi.tasks.code import Code
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.math import Math
from ladi.train import dlr
from ladi.train.pipeline import Pipeline, Sizes, pipeline
from ladi.train.rl import PolicyConfig
from ladi.train.rollout import RolloutConfig

LLAMA3_8B = "meta-llama/Llama-3.1-8B"
QWEN3_600M, QWEN3_8B = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"
LLAMA2_7B, LLAMA2_1B = "meta-llama/Llama-2-7b-hf", "princeton-nlp/Sheared-LLaMA-1.3B"


LADIR_8B = Sizes(
    task=Math(),
    backbone=BackboneConfig(name_or_path=LLAMA3_8B),
    vae=ThoughtVAEConfig(
        num_latents=6,
        latent_width=512,
        decoder="frozen",
        beta=1e-5,
        latent_noise=0.1,
        token_corruption=0.3,
        max_block_tokens=256,
    ),
    max_blocks=32,
    max_answer_tokens=64,
    max_text_tokens=768,
    num_train=7500,
    batch_size=64,
    micro_batch_size=4,
    precision="bf16",
    gradient_checkpointing=True,
    sft_steps=400,
    vae_steps=2000,
    reasoner_steps=10_000,
    rollout_steps=1000,
    optimizer="adamw",
    sft_lr=1e-5,
    vae_lr=1e-5,
    reasoner_lr=1e-5,
    rollout_lr=5e-6,
    rollout=RolloutConfig(num_steps=10),
    rl_lr=1e-6,
    grpo_lr=1e-6,
    rl_questions=16,
    rl_micro_batch_size=1,
    policy=PolicyConfig(
        num_latents=16,
        texts_per_latent=5,
        num_steps=10,
        alpha=0.9,
        guidance=0.8 * 10,  # the paper's 0.8 is added once a step, ours is a rate over the time of all ten
        rollout_texts=80,
        replay_copies=16,
        replay_texts=4,
    ),
)
"""LaDiR on MATH; the other presets of LaDiR say what differs."""


def ladir_math_llama8b(root: Path = Path("runs/ladir_math_llama8b"), seed: int = 0) -> Pipeline:
    """LaDiR on MATH with LLaMA-3.1-8B: a block a sentence, 6 latents of width 512 (arXiv:2510.04573)."""
    return pipeline(LADIR_8B, root, seed)


LADIR_600M = replace(
    LADIR_8B,
    task=Gsm8k(),
    backbone=BackboneConfig(name_or_path=QWEN3_600M),
    vae=replace(LADIR_8B.vae, latent_width=128, decoder="lora", beta=1e-3, max_block_tokens=128),
    max_blocks=10,
    max_answer_tokens=16,
    max_text_tokens=256,
    num_train=7473,
    micro_batch_size=8,
    sft_steps=350,
    rollout_steps=500,
    vae_lr=1e-4,
    reasoner_lr=5e-5,
    rollout_lr=1e-5,
    rl_questions=32,
    rl_micro_batch_size=2,
    policy=PolicyConfig(
        num_latents=16, texts_per_latent=2, num_steps=10, rollout_texts=512, replay_copies=64, replay_texts=16
    ),
)
"""LaDiR on GSM8K with Qwen3-0.6B."""


def ladir_gsm8k_qwen3_600m(root: Path = Path("runs/ladir_gsm8k_qwen3_600m"), seed: int = 0) -> Pipeline:
    """The whole chain on GSM8K with Qwen3-0.6B, for one GPU; the place to start with a pretrained model."""
    return pipeline(LADIR_600M, root, seed)


def jsonl_qwen3_600m(root: Path = Path("runs/jsonl_qwen3_600m"), seed: int = 0) -> Pipeline:
    """The same on your own data (`--data.task.path FILE`), about 1,000 training problems.

    They are passed over as often as GSM8K's: 3 times in `sft`, 96 in `reasoner`, 4 in `rollout`; but 38 times in
    `vae`, not 17, for its latents start from nothing and need hundreds of steps, and noise and corrupted tokens keep it
    from learning the texts by heart. With many more problems set `--loop.steps` in proportion. Answers may be words.
    """
    sizes = replace(
        LADIR_600M,
        task=Jsonl(),
        max_answer_tokens=64,
        num_train=0,
        sft_steps=50,
        vae_steps=600,
        reasoner_steps=1500,
        rollout_steps=70,
    )
    return pipeline(sizes, root, seed)


def ladir_code_qwen3_8b(root: Path = Path("runs/ladir_code_qwen3_8b"), seed: int = 0) -> Pipeline:
    """LaDiR on MBPP with Qwen3-8B: the whole program is one block of 64 latents, denoised in 30 steps."""
    sizes = replace(
        LADIR_8B,
        task=Code(benchmark="mbpp"),
        backbone=BackboneConfig(name_or_path=QWEN3_8B),
        vae=replace(LADIR_8B.vae, num_latents=64, block="whole", max_block_tokens=512),
        max_blocks=1,
        max_answer_tokens=512,
        max_text_tokens=512,
        num_train=374,
        sft_steps=60,
        vae_steps=600,
        reasoner_steps=3000,
        rollout_steps=300,
    )
    return pipeline(sizes, root, seed)


def ladi_rl_code_qwen3_8b(root: Path = Path("runs/ladi_rl_code_qwen3_8b"), seed: int = 0) -> Pipeline:
    """The same up to LaDi-RL, whose model is evaluated: 16 x 5 texts, 10 steps in rollouts (arXiv:2602.01705)."""
    stages = ladir_code_qwen3_8b(root, seed)
    return replace(stages, eval=replace(stages.eval, model_dir=stages.rl.out_dir / "final"))


def dlr_paper(root: Path = Path("runs/dlr_paper"), seed: int = 0) -> Pipeline:
    """The settings of DLR's table 2 on GSM8K: LLaMA-2-7B, a 1.3B LLaMA-2 assistant, 8 GPUs x 4 questions, 3 epochs.

    The paper names no checkpoint of its assistant; Sheared-LLaMA is LLaMA-2 pruned to that size. It does not say how
    the 18 % are chosen either: the filter is the value head here.
    """
    num_train, questions = 7473, 8 * 4
    sizes = Sizes(
        task=Gsm8k(),
        backbone=BackboneConfig(name_or_path=LLAMA2_7B),
        vae=ThoughtVAEConfig(num_latents=6, latent_width=512, beta=1e-5, max_block_tokens=256),
        max_blocks=10,
        max_answer_tokens=128,
        max_text_tokens=512,
        num_train=num_train,
        batch_size=32,
        micro_batch_size=4,
        precision="bf16",
        gradient_checkpointing=True,
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
        rl_micro_batch_size=4,
        policy=PolicyConfig(rollout_texts=48, replay_copies=64, replay_texts=16),
        main=LLAMA2_7B,
        main_dtype="bfloat16",
        assistant_backbone=BackboneConfig(name_or_path=LLAMA2_1B),
        assistant=AssistantConfig(num_latents=32, latent_width=512),
        warmup_steps=num_train // questions,
        warmup_free_steps=80,
        warmup_beta_steps=120,
        warmup_lr=3e-5,
        grpo_lr=1e-6,
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
            replay_trajectories=16,
        ),
        dlr_lr=3e-5,
        projection_lr=1e-4,
    )
    return pipeline(sizes, root, seed)


def dlr_gsm8k_llama2_7b(root: Path = Path("runs/dlr_gsm8k_llama2_7b"), seed: int = 0) -> Pipeline:
    """`dlr_paper` under the name of its data and main model."""
    return dlr_paper(root, seed)
