#!/usr/bin/env bash
# Token GRPO and LaDi-RL on Countdown-3 from the bundled models, with the same tuning effort: three learning rates each,
# then 100 updates at equal sampled texts, and as many of GRPO as take equal wall time.
# Twenty minutes of training and ten of evaluation on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_tuning
OUT=${OUT:-runs/results/cd3_rl_equal}

# 24 puzzles x 32 texts an update, for all of them.
GRPO="ladi train grpo --preset cd3_tiny --model-dir $A/ar --policy.num-generations 32"
LADI_RL="ladi train rl --preset cd3_tiny --model-dir $A/stage1 --policy.replay-steps 5"
WIDE="--policy.num-latents 32 --policy.texts-per-latent 1 --policy.alpha 1.0 --policy.temperature 0.0"
DEEP="--policy.num-latents 16 --policy.texts-per-latent 2"

# Tuning: fifty updates at three learning rates each.
for lr in 2e-5 5e-5 1e-4; do
  $GRPO --out-dir $R/tune_grpo_$lr --loop.steps 50 --loop.optim.lr $lr
  $LADI_RL $WIDE --out-dir $R/tune_rl_$lr --loop.steps 50 --loop.optim.lr $lr
done

# The comparison; an update of LaDi-RL takes about twice as long as one of GRPO.
$GRPO --out-dir $R/grpo --loop.steps 100
$GRPO --out-dir $R/grpo_wall --loop.steps 200
$LADI_RL $DEEP --out-dir $R/rl_16x2 --loop.steps 100
$LADI_RL $WIDE --out-dir $R/rl_32x1 --loop.steps 100

EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 128 --ks 1 4 16 64 128"
token="--latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
for lr in 2e-5 5e-5 1e-4; do
  $EVAL $token --model-dir $R/tune_grpo_$lr/final --sample.temperature 1.0 --label "GRPO, 50 updates, lr $lr" \
    --json ${OUT}_tuning/eval/1_grpo_$lr.json
  $EVAL $latent --model-dir $R/tune_rl_$lr/final --label "LaDi-RL 32 x 1, 50 updates, lr $lr" --json ${OUT}_tuning/eval/2_rl_$lr.json
done
ladi report ${OUT}_tuning --out ${OUT}_tuning/table.html --markdown docs/results.md#cd3_rl_tuning

$EVAL $token --model-dir $A/ar --sample.temperature 1.0 --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $token --model-dir $R/grpo/final --sample.temperature 1.0 --label "token GRPO" --json $OUT/eval/2_grpo.json
$EVAL $token --model-dir $R/grpo_wall/final --sample.temperature 1.0 --label "token GRPO, 200 updates (equal wall time)" \
  --json $OUT/eval/2_grpo_wall.json
$EVAL $latent --model-dir $A/stage1 --label "LaDiR" --json $OUT/eval/3_ladir.json
$EVAL $latent --model-dir $R/rl_16x2/final --label "LaDi-RL, 16 x 2" --json $OUT/eval/4_rl_16x2.json
$EVAL $latent --model-dir $R/rl_32x1/final --label "LaDi-RL, 32 x 1" --json $OUT/eval/5_rl_32x1.json
ladi report $OUT $R/grpo $R/rl_16x2 $R/rl_32x1 --out $OUT/report.html --title "Countdown-3, reinforcement learning"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_equal
