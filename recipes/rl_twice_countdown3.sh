#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3 from the bundled models, with two optimizer steps from each batch of texts and three seeds of
# puzzles, rollouts and evaluation: 100 batches of 24 puzzles x 32 texts, beside the rows of recipes/rl_countdown3.sh.
# Forty minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_rl_twice}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
for s in 0 1 2; do
  R=runs/rl_twice/$s
  P="--preset cd3_tiny --data.task.seed $s --loop.seed $s --policy.num-iterations 2 --loop.steps 200"
  ladi train grpo $P --model-dir $A/ar --policy.num-generations 32 --out-dir $R/grpo
  ladi train rl $P --model-dir $A/stage1 --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/rl
  $EVAL --sample.temperature 1.0 --latent-use-samples 0 --seed $s --model-dir $R/grpo/final --label "AR SFT + token GRPO" \
    --json $OUT/eval/1_grpo_$s.json
  $EVAL --sample.num-steps 10 --latent-use-samples 4 --seed $s --model-dir $R/rl/final --label "LaDiR + LaDi-RL" \
    --json $OUT/eval/2_rl_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_twice --over-seeds \
  --against "AR SFT + token GRPO"
