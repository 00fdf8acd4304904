#!/usr/bin/env bash
# Reinforcement learning on Countdown-4, after recipes/countdown4.sh: token GRPO beside LaDi-RL at equal sampled texts.
# Fifteen minutes of training and ten of evaluation on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd4_tiny
OUT=${OUT:-runs/results/cd4_rl}

# 24 puzzles x 32 texts an update, for all of them.
LADI_RL="ladi train rl --preset cd4_tiny --policy.replay-steps 5 --loop.steps 100"
ladi train grpo --preset cd4_tiny --policy.num-generations 32 --loop.steps 100
$LADI_RL --out-dir $R/rl_16x2 --policy.num-latents 16 --policy.texts-per-latent 2
$LADI_RL --out-dir $R/rl_32x1 --policy.num-latents 32 --policy.texts-per-latent 1 --policy.alpha 1.0 --policy.temperature 0.0

EVAL="ladi eval --preset cd4_tiny --num-questions 200 --num-samples 100"
token="--latent-use-samples 0 --sample.temperature 1.0"
latent="--latent-use-samples 4 --sample.num-steps 10"
$EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $token --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/3_ladir.json
$EVAL $latent --model-dir $R/rl_16x2/final --label "LaDiR + LaDi-RL, 16 x 2" --json $OUT/eval/4_rl_16x2.json
$EVAL $latent --model-dir $R/rl_32x1/final --label "LaDiR + LaDi-RL, 32 x 1" --json $OUT/eval/5_rl_32x1.json
ladi report $OUT $R/grpo $R/rl_16x2 $R/rl_32x1 --out $OUT/report.html --title "Countdown-4, reinforcement learning"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4_rl
