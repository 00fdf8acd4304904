#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3 from another base than the bundled one: weights, noise, puzzles, rollouts and evaluation
# are those of seed 1 (the bundled VAE is shared); the base is that of recipes/seeds_countdown3.sh. 100 updates of 24 puzzles x 32
# texts each. An hour on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_tiny_seed1
OUT=${OUT:-runs/results/cd3_rl_base}
VAE="--vae-dir $A/vae --latents-path runs/cd3_tiny_latents.safetensors"
P="--preset cd3_tiny --loop.seed 1"

ladi train sft $P --backbone.seed 1 --out-dir $R/sft
ladi train reasoner $P $VAE --backbone-dir $R/sft/final --out-dir $R/reasoner
ladi train rl $P --data.task.seed 1 --loop.steps 100 --model-dir $R/reasoner/final \
  --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/rl_own_base
ladi train grpo $P --data.task.seed 1 --loop.steps 100 --model-dir $R/sft/final --policy.num-generations 32 \
  --out-dir $R/grpo_own_base

EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --seed 1"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
$EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar_1.json
$EVAL $token --model-dir $R/grpo_own_base/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_1.json
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/3_ladir_1.json
$EVAL $latent --model-dir $R/rl_own_base/final --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl_1.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_base
