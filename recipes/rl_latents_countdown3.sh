#!/usr/bin/env bash
# LaDi-RL on Countdown-3 with one text for each of 32 latents in place of two for each of 16 (recipes/rl_countdown3.sh):
# as many texts, twice the latents, three seeds of puzzles, rollouts and evaluation from the bundled stage 1.
# Half an hour on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_rl_latents}
for s in 0 1 2; do
  R=runs/cd3_tiny_seed$s/rl_latents
  ladi train rl --preset cd3_tiny --data.task.seed $s --loop.seed $s --loop.steps 100 --model-dir $A/stage1 \
    --policy.num-latents 32 --policy.texts-per-latent 1 --policy.text-advantage pooled --policy.replay-steps 5 --out-dir $R
  ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --sample.num-steps 10 \
    --latent-use-samples 4 --seed $s --model-dir $R/final --label "LaDiR + LaDi-RL, 32 x 1" --json $OUT/eval/rl_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_latents --over-seeds
