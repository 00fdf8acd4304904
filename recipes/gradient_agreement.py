"""How much the policy gradients of independent batches agree: what reinforcement learning has to learn from.

    python recipes/gradient_agreement.py

Ten batches of 24 questions x 32 texts, drawn by the same weights. `cosine` is the mean over pairs of batches, 0 where a
gradient is noise alone; `as Adam sees it` the same of gradients whose every number is divided by its root mean square
over batches. `with correct answers` is the cosine of their mean with the supervised gradient of 512 solutions, where a
model is token-level. It needs the main model of recipes/dlr_arithmetic.sh.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ladi.bundled import resolve
from ladi.inference.models import load_model
from ladi.inference.text import sft_target
from ladi.report import numbers_table, update_markdown
from ladi.rundir import provenance
from ladi.train import grpo, rl, sft
from ladi.train.data import tokenize_pairs
from ladi.train.presets import preset_named
from ladi.train.rewards import Rewards

NUM_BATCHES, QUESTIONS = 10, 24
CD3 = "assets/cd3_tiny"


def gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    """All trainable weights' gradient as one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def mean_cosine(vectors: list[Tensor]) -> float:
    """Over all pairs."""
    return float(torch.stack([cosine_similarity(a, b, dim=0) for a, b in combinations(vectors, 2)]).mean())


def agreement(preset: str, model_dir: str, **policy: Any) -> dict[str, float]:
    pipeline, model = preset_named(preset)(), load_model(resolve(Path(model_dir))).train()
    is_latent = "num_latents" in policy
    stage: Any = rl if is_latent else grpo
    config = pipeline.rl if is_latent else pipeline.grpo
    config = replace(config, policy=replace(config.policy, **policy))
    task = config.data.task
    rewards = Rewards(config.reward, task)
    gradients, solved = [], 0.0
    for i in range(NUM_BATCHES):
        problems = [task.problem("train", i * QUESTIONS + j) for j in range(QUESTIONS)]
        rollout = stage.sample_rollout(model, problems, rewards, config, torch.Generator().manual_seed(i))
        gradients.append(gradient(model, stage.loss(model, rollout, config)[0]))
        solved += float(rollout.metrics["rollout/pass@1"]) / NUM_BATCHES
    size = torch.stack(gradients).square().mean(0).sqrt().clamp(min=1e-20)
    found = {
        "pass@1 (%)": 100 * solved,
        "cosine": mean_cosine(gradients),
        "as Adam sees it": mean_cosine([g / size for g in gradients]),
    }
    if not is_latent:
        shown = [task.problem("train", 5000 + j) for j in range(512)]
        tokens = tokenize_pairs(model, [p.question for p in shown], [sft_target(p, task) for p in shown])
        supervised = gradient(model, sft.loss(model, tokens, torch.Generator())[0])
        mean = torch.stack(gradients).mean(0)
        found["with correct answers"] = float(cosine_similarity(mean, supervised, dim=0))
    return found


if __name__ == "__main__":
    table = {
        "token GRPO, arithmetic": agreement("dlr_arithmetic", "runs/arithmetic_tiny/sft/final", num_generations=32),
        "token GRPO, Countdown-3": agreement("cd3_tiny", f"{CD3}/ar", num_generations=32),
    }
    for name, policy in {
        "16 x 2": {},
        "16 x 2, pooled": {"text_advantage": "pooled"},
        "16 x 2, latents only": {"alpha": 1.0},
        "8 x 4": {"num_latents": 8, "texts_per_latent": 4},
        "32 x 1, pooled": {"num_latents": 32, "texts_per_latent": 1, "text_advantage": "pooled"},
    }.items():
        settings = {"num_latents": 16, "texts_per_latent": 2, **policy}
        table[f"LaDi-RL, Countdown-3, {name}"] = agreement("cd3_tiny", f"{CD3}/stage1", **settings)
    text = numbers_table(table, {**provenance(), "command": "python recipes/gradient_agreement.py"})
    update_markdown(Path(__file__).parents[1] / "docs" / "results.md", "gradient_agreement", text)
    print(text)
