#!/usr/bin/env bash
# Token GRPO and LaDi-RL on Countdown-3 from the bundled models, with the same tuning effort: four learning rates each,
# 50 updates of 24 puzzles x 32 texts, and 100 at the best. Twenty-five minutes of training and six of evaluation on two
# cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_tuning
OUT=${OUT:-runs/results/cd3_rl_tuning}

GRPO="ladi train grpo --preset cd3_tiny --model-dir $A/ar --policy.num-generations 32"
LADI_RL="ladi train rl --preset cd3_tiny --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5"
EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64 --latent-use-samples 0"
token="--sample.temperature 1.0"
latent="--sample.num-steps 10"

$EVAL $token --model-dir $A/ar --label "AR SFT" --json $OUT/eval/0_ar.json
$EVAL $latent --model-dir $A/stage1 --label "LaDiR" --json $OUT/eval/0_ladir.json
for lr in 2e-5 5e-5 1e-4 2e-4; do
  $GRPO --out-dir $R/grpo_$lr --loop.steps 50 --loop.optim.lr $lr
  $EVAL $token --model-dir $R/grpo_$lr/final --label "GRPO, 50 updates, lr $lr" --json $OUT/eval/1_grpo_$lr.json
done
for lr in 5e-5 1e-4 2e-4 4e-4; do
  $LADI_RL --model-dir $A/stage1 --out-dir $R/rl_$lr --loop.steps 50 --loop.optim.lr $lr
  $EVAL $latent --model-dir $R/rl_$lr/final --label "LaDi-RL, 50 updates, lr $lr" --json $OUT/eval/2_rl_$lr.json
done
for lr in 5e-5 1e-4; do
  $GRPO --out-dir $R/grpo_100_$lr --loop.steps 100 --loop.optim.lr $lr
  $EVAL $token --model-dir $R/grpo_100_$lr/final --label "GRPO, 100 updates, lr $lr" --json $OUT/eval/3_grpo_100_$lr.json
done
$LADI_RL --model-dir $A/stage1 --out-dir $R/rl_100_2e-4 --loop.steps 100 --loop.optim.lr 2e-4
$EVAL $latent --model-dir $R/rl_100_2e-4/final --label "LaDi-RL, 100 updates, lr 2e-4" --json $OUT/eval/4_rl_100_2e-4.json
$LADI_RL --model-dir $A/stage2 --out-dir $R/rl_stage2_2e-4 --loop.steps 100 --loop.optim.lr 2e-4
$EVAL $latent --model-dir $R/rl_stage2_2e-4/final --label "LaDi-RL from stage 2, 100 updates, lr 2e-4" --json $OUT/eval/5_rl_stage2_2e-4.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_tuning
