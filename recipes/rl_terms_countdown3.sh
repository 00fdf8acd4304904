#!/usr/bin/env bash
# Which terms of LaDi-RL do the work, and how many texts a latent needs, on Countdown-3 from the bundled stage-1 model: 50 updates
# of 24 puzzles x 32 texts at the preset's learning rate (2e-4), one seed. With one text per latent there is no group within
# a latent, so text advantages are pooled over the question; the same with several texts stands beside it.
# A quarter of an hour on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_terms
OUT=${OUT:-runs/results/cd3_rl_terms}

one() {  # name, label, settings of the stage
  local name=$1 label=$2
  shift 2
  ladi train rl --preset cd3_tiny --model-dir $A/stage1 --out-dir $R/$name --loop.steps 50 "$@"
  ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64 --sample.num-steps 10 \
    --latent-use-samples 4 --model-dir $R/$name/final --label "$label" --json $OUT/eval/$name.json
}
FEW="--policy.num-latents 8 --policy.texts-per-latent 4"
ONE="--policy.num-latents 32 --policy.texts-per-latent 1"
POOLED="--policy.text-advantage pooled"
one 1_both "8 x 4, both terms" $FEW
one 2_pooled "8 x 4, both terms, pooled text advantage" $FEW $POOLED
one 3_one_pooled "32 x 1, both terms, pooled text advantage" $ONE $POOLED
one 4_texts "8 x 4, texts only" $FEW --policy.alpha 0.0
one 5_latents "8 x 4, latents only" $FEW --policy.alpha 1.0
one 6_one_latents "32 x 1, latents only" $ONE --policy.alpha 1.0
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_terms
