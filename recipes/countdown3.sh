#!/usr/bin/env bash
# Countdown-3 from nothing to measured numbers, a block per step: the table of contents of the project, and what made the bundled
# models of cd3_tiny. Those of cd3_one_block: recipes/rl_density_countdown3.sh.
# Two hours on two cores. Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd3_tiny"
R=runs/cd3_tiny

ladi train sft $P                # the token-level model: baseline, and start of everything else
ladi train vae $P                # blocks of thought <-> latents
ladi train reasoner $P           # stage 1: denoise blocks, teacher forced
ladi train rollout $P            # stage 2: learn from self-made blocks

# Reinforcement learning, 24 puzzles x 32 texts an update: a hundred updates, then 150 more of both on other puzzles.
RL="ladi train rl $P --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5"
GRPO="ladi train grpo $P --policy.num-generations 32"
$RL --loop.steps 100
$GRPO --loop.steps 100
$RL --loop.steps 150 --data.task.seed 1 --loop.seed 1 --model-dir $R/rl/final --out-dir $R/rl_more
$GRPO --loop.steps 150 --data.task.seed 1 --loop.seed 1 --model-dir $R/grpo/final --out-dir $R/grpo_more

python recipes/bundle.py cd3_tiny ar=$R/sft vae=$R/vae stage1=$R/reasoner stage2=$R/rollout
bash recipes/eval_countdown3.sh
