#!/usr/bin/env bash
# Token GRPO and LaDi-RL on Countdown-3 with three seeds (of puzzles, rollouts and evaluation) from the bundled models: 100 updates of
# 24 puzzles x 32 texts, each at its best learning rate (recipes/rl_tuning_countdown3.sh). Seed 0 is trained by
# recipes/countdown3.sh. Twelve minutes of training and ten of evaluation on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_rl}

for s in 1 2; do
  P="--preset cd3_tiny --data.task.seed $s --loop.seed $s --loop.steps 100"
  ladi train rl $P --model-dir $A/stage1 --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
    --out-dir runs/cd3_tiny_seed$s/rl
  ladi train grpo $P --model-dir $A/ar --policy.num-generations 32 --out-dir runs/cd3_tiny_seed$s/grpo
done

EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
$EVAL $token --model-dir $A/ar --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $latent --model-dir $A/stage1 --label "LaDiR" --json $OUT/eval/3_ladir.json
for s in 0 1 2; do
  R=runs/cd3_tiny_seed$s
  [ $s = 0 ] && R=runs/cd3_tiny
  $EVAL $token --seed $s --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_$s.json
  $EVAL $latent --seed $s --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl --over-seeds
ladi report $OUT runs/cd3_tiny/rl runs/cd3_tiny/grpo --out $OUT/report.html --title "Countdown-3, reinforcement learning"
