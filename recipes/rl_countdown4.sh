#!/usr/bin/env bash
# Reinforcement learning on Countdown-4, after recipes/countdown4.sh: token GRPO beside LaDi-RL at equal sampled texts.
# Ten minutes of training and five of evaluation on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd4_tiny
OUT=${OUT:-runs/results/cd4}

# 24 puzzles x 32 texts an update, for both.
ladi train grpo --preset cd4_tiny --policy.num-generations 32 --loop.steps 100
ladi train rl --preset cd4_tiny --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --loop.steps 100

EVAL="ladi eval --preset cd4_tiny --num-questions 200 --num-samples 100"
$EVAL --latent-use-samples 0 --model-dir $R/grpo/final --sample.temperature 1.0 --label "AR SFT + token GRPO" --json $OUT/eval/4_grpo.json
$EVAL --latent-use-samples 4 --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/5_rl.json
ladi report $OUT $R/grpo $R/rl --out $OUT/report.html --title "Countdown-4"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4
