#!/usr/bin/env bash
# Clip range, temperature and KL of token GRPO and of LaDi-RL on Countdown-3 from the bundled models: as many texts each as the
# learning rates of recipes/rl_tuning_countdown3.sh had (50 batches of 24 puzzles x 32), at the best of those. A ratio leaves 1, so
# that a clip range can tell, only where a batch is used again: those rows take two steps from each.
# Half an hour on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/rl_clip
OUT=${OUT:-runs/results/cd3_rl_clip}
EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 64 --ks 1 4 16 64 --latent-use-samples 0"

grpo() {  # name, label, settings of the stage
  local name=$1 label=$2
  shift 2
  ladi train grpo --preset cd3_tiny --model-dir $A/ar --policy.num-generations 32 --loop.steps 50 --out-dir $R/$name "$@"
  $EVAL --sample.temperature 1.0 --model-dir $R/$name/final --label "GRPO, $label" --json $OUT/eval/$name.json
}
ladi_rl() {
  local name=$1 label=$2
  shift 2
  ladi train rl --preset cd3_tiny --model-dir $A/stage1 --policy.num-latents 16 --policy.texts-per-latent 2 \
    --policy.replay-steps 5 --loop.steps 50 --out-dir $R/$name "$@"
  $EVAL --sample.num-steps 10 --model-dir $R/$name/final --label "LaDi-RL, $label" --json $OUT/eval/$name.json
}
TWICE="--policy.num-iterations 2 --loop.steps 100"
grpo 10_once "each batch once"
grpo 11_cold "temperature 0.7" --policy.temperature 0.7
grpo 12_hot "temperature 1.3" --policy.temperature 1.3
grpo 13_kl "KL 0.04" --policy.beta 0.04
grpo 14_twice "twice, clip 0.2" $TWICE
grpo 15_narrow "twice, clip 0.1" $TWICE --text.epsilon 0.1
grpo 16_higher "twice, clip 0.2 and 0.28" $TWICE --text.epsilon-high 0.28
ladi_rl 20_once "each batch once"
ladi_rl 21_cold "temperature 0.7" --policy.temperature 0.7
ladi_rl 22_kl "KL 0.04" --policy.beta 0.04
ladi_rl 23_twice "twice, clip of the preset" $TWICE
ladi_rl 24_narrow "twice, half the clip" $TWICE --text.epsilon 0.1 --latent.epsilon 0.1
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_clip
