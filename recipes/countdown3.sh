#!/usr/bin/env bash
# Countdown-3 from nothing to measured numbers: the table of contents of the project. About two hours on two cores.
# Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd3_tiny"
R=runs/cd3_tiny

ladi train sft $P                # the token-level model: baseline, and start of everything else
ladi train vae $P                # blocks of thought <-> latents
ladi train reasoner $P           # stage 1: denoise blocks, teacher forced
ladi train rollout $P            # stage 2: learn from self-made blocks

# A token-level model trained on as many examples as all of the reasoner's stages together.
ladi train sft $P --out-dir $R/ar_matched --loop.steps 4300

bash recipes/eval_countdown3.sh
