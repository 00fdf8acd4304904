#!/usr/bin/env bash
# Reinforcement learning on Countdown-3 from the bundled models: token GRPO, LaDi-RL and its variants, and what plain
# sharpening does. Twenty-five minutes of training and ten of evaluation on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl
OUT=${OUT:-runs/results/cd3_rl}

# 24 puzzles x 32 texts an update, for all of them.
TRAIN="ladi train rl --preset cd3_tiny --model-dir $A/stage1"
HALF="--policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5"
ladi train grpo --preset cd3_tiny --model-dir $A/ar --out-dir $R/grpo_a --policy.num-generations 32 --loop.steps 100
$TRAIN --out-dir $R/s1_a $HALF --loop.steps 100
$TRAIN --out-dir $R/long $HALF --loop.steps 300
$TRAIN --out-dir $R/s1_b $HALF --loop.steps 100 --loop.optim.lr 2e-4
$TRAIN --out-dir $R/s1_c --policy.num-latents 32 --policy.texts-per-latent 1 --policy.alpha 1.0 --policy.temperature 0.0 \
  --policy.sde-window 0 5 --loop.steps 100 --loop.optim.lr 1e-4

EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64"
token="--latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
$EVAL $token --model-dir $A/ar --sample.temperature 1.0 --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $token --model-dir $A/ar --sample.temperature 0.7 --label "AR SFT" --json $OUT/eval/1_ar_t07.json
$EVAL $token --model-dir $A/ar --sample.temperature 0.4 --label "AR SFT" --json $OUT/eval/1_ar_t04.json
$EVAL $token --model-dir $R/grpo_a/final --sample.temperature 1.0 --label "token GRPO" --json $OUT/eval/2_grpo.json
$EVAL $latent --model-dir $A/stage1 --label "LaDiR" --json $OUT/eval/3_ladir.json
$EVAL $latent --model-dir $A/stage1 --sample.initial-noise 0.5 --label "LaDiR" --json $OUT/eval/3_ladir_n05.json
$EVAL $latent --model-dir $R/s1_a/final --label "LaDi-RL" --json $OUT/eval/4_rl.json
$EVAL $latent --model-dir $R/s1_a/final --sample.noise-level 0.7 --label "LaDi-RL" --json $OUT/eval/4_rl_sde.json
$EVAL $latent --model-dir $R/s1_b/final --label "LaDi-RL, lr 2e-4" --json $OUT/eval/5_rl_lr.json
$EVAL $latent --model-dir $R/s1_c/final --label "LaDi-RL, early steps, 32 x 1, lr 1e-4" --json $OUT/eval/6_rl_window.json
$EVAL $latent --model-dir $R/long/final --label "LaDi-RL, 300 updates" --json $OUT/eval/7_rl_long.json
ladi report $OUT $R/grpo_a $R/s1_a $R/s1_b $R/s1_c --out $OUT/report.html --title "Countdown-3, reinforcement learning"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl
