#!/usr/bin/env bash
# LaDi-RL from the reasoner of one block (recipes/whole_countdown3.sh) beside token GRPO from the bundled AR SFT: 100 updates of
# 24 puzzles x 32 texts, one seed. Ten minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_whole_rl}
P="--preset cd3_tiny --loop.steps 100"
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"

$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR, one block" --json $OUT/eval/3_ladir.json
ladi train rl $P --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
  --out-dir $R/rl_0
$EVAL $latent --seed 0 --model-dir $R/rl_0/final --label "LaDiR, one block + LaDi-RL" --json $OUT/eval/4_rl_0.json
ladi train grpo $P --model-dir $A/ar --policy.num-generations 32 --out-dir $R/grpo_0
$EVAL $token --seed 0 --model-dir $R/grpo_0/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_0.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_whole_rl --against "AR SFT + token GRPO"
