#!/usr/bin/env bash
# Countdown-3 from nothing to measured numbers: the table of contents of the project. An hour and a half on two cores.
# Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd3_tiny"
R=runs/cd3_tiny

ladi train sft $P                # the token-level model: baseline, and start of everything else
ladi train vae $P                # blocks of thought <-> latents
ladi train reasoner $P           # stage 1: denoise blocks, teacher forced
ladi train rollout $P            # stage 2: learn from self-made blocks

# Reinforcement learning from these models: recipes/rl_countdown3.sh.
bash recipes/eval_countdown3.sh
