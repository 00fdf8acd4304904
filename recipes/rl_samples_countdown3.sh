#!/usr/bin/env bash
# More from as many texts, on Countdown-3 from the bundled models, beside the rows of recipes/rl_countdown3.sh: one text for each
# of 32 latents in place of two for each of 16, text advantages over the whole puzzle, and two optimizer steps from each batch in
# place of one. 100 batches of 24 puzzles x 32 texts, seed 0. Half an hour on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_samples
OUT=${OUT:-runs/results/cd3_rl_samples}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
ONE="--policy.num-latents 32 --policy.texts-per-latent 1 --policy.text-advantage pooled"
TWO="--policy.num-latents 16 --policy.texts-per-latent 2"
TWICE="--policy.num-iterations 2 --loop.steps 200"

ladi_rl() {  # name, label, settings of the stage
  local name=$1 label=$2
  shift 2
  ladi train rl --preset cd3_tiny --model-dir $A/stage1 --policy.replay-steps 5 --loop.steps 100 --out-dir $R/$name "$@"
  $EVAL --sample.num-steps 10 --latent-use-samples 4 --model-dir $R/$name/final --label "$label" --json $OUT/eval/$name.json
}
ladi train grpo --preset cd3_tiny --model-dir $A/ar --policy.num-generations 32 $TWICE --out-dir $R/1_grpo_twice
$EVAL --sample.temperature 1.0 --latent-use-samples 0 --model-dir $R/1_grpo_twice/final --label "GRPO, each batch twice" \
  --json $OUT/eval/1_grpo_twice.json
ladi_rl 2_twice "LaDi-RL, 16 x 2, each batch twice" $TWO $TWICE
ladi_rl 3_one "LaDi-RL, 32 x 1" $ONE
ladi_rl 4_pooled "LaDi-RL, 16 x 2, pooled text advantage" $TWO --policy.text-advantage pooled
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_samples
