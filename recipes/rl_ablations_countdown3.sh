#!/usr/bin/env bash
# What matters in LaDi-RL, on Countdown-3 from the bundled stage-1 model: one setting changed at a time, 50 updates each
# of 24 puzzles x 32 texts at learning rate 5e-5, one seed. One text per latent has no other of its latent to be compared
# with, so those rows change the text advantages or leave them out too. Half an hour on two cores, evaluation included.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_ablations
OUT=${OUT:-runs/results/cd3_rl_ablations}

one() {  # name, label, settings of the stage
  local name=$1 label=$2
  shift 2
  ladi train rl --preset cd3_tiny --model-dir $A/stage1 --out-dir $R/$name --loop.steps 50 \
    --loop.optim.lr 5e-5 --policy.num-latents 8 --policy.texts-per-latent 4 "$@"
  ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64 --sample.num-steps 10 \
    --latent-use-samples 4 --model-dir $R/$name/final --label "$label" --json $OUT/eval/$name.json
}

ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64 --sample.num-steps 10 \
  --latent-use-samples 4 --model-dir $A/stage1 --label "LaDiR, before" --json $OUT/eval/00_before.json
one 00_base "8 x 4, alpha 0.9"
one 01_alpha_0 "alpha 0 (texts only)" --policy.alpha 0.0
one 02_alpha_05 "alpha 0.5" --policy.alpha 0.5
one 03_alpha_1 "alpha 1 (latents only)" --policy.alpha 1.0
one 04_pooled "pooled text advantage" --policy.text-advantage pooled
one 05_m1_latents "32 x 1, latents only" --policy.num-latents 32 --policy.texts-per-latent 1 --policy.alpha 1.0
one 05_m1_pooled "32 x 1, pooled text advantages" --policy.num-latents 32 --policy.texts-per-latent 1 \
  --policy.text-advantage pooled
one 06_noise_03 "noise level 0.3" --policy.noise-level 0.3
one 07_noise_1 "noise level 1.0" --policy.noise-level 1.0
one 08_k5 "5 steps" --policy.num-steps 5
one 09_k20 "20 steps" --policy.num-steps 20
one 10_guided "guidance 0.8" --policy.guidance 0.8
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_ablations
