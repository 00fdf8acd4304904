#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3, each from its own base of three seeds: weights, noise, puzzles, rollouts and evaluation
# all change with the seed (the bundled VAE is shared). 100 updates of 24 puzzles x 32 texts, then 150 more. Seed 0 is the
# bundled one (recipes/countdown3.sh); the bases of the others are those of recipes/seeds_countdown3.sh.
# Two hours on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_rl_bases}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"

measured() {  # seed, AR SFT, GRPO, stage 1, LaDi-RL
  $EVAL $token --seed $1 --model-dir $2 --label "AR SFT" --json $OUT/eval/1_ar_$1.json
  $EVAL $token --seed $1 --model-dir $3 --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_$1.json
  $EVAL $latent --seed $1 --model-dir $4 --label "LaDiR" --json $OUT/eval/3_ladir_$1.json
  $EVAL $latent --seed $1 --model-dir $5 --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl_$1.json
}
measured_long() {  # seed, GRPO, LaDi-RL
  $EVAL $token --seed $1 --model-dir $2 --label "AR SFT + token GRPO, 250 updates" --json $OUT/eval/2_grpo_long_$1.json
  $EVAL $latent --seed $1 --model-dir $3 --label "LaDiR + LaDi-RL, 250 updates" --json $OUT/eval/4_rl_long_$1.json
}
VAE="--vae-dir $A/vae --latents-path runs/cd3_tiny_latents.safetensors"
GRPO="ladi train grpo --preset cd3_tiny --policy.num-generations 32"
RL="ladi train rl --preset cd3_tiny --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5"
for s in 1 2; do
  R=runs/cd3_tiny_seed$s
  P="--preset cd3_tiny --loop.seed $s"
  ladi train sft $P --backbone.seed $s --out-dir $R/sft
  ladi train reasoner $P $VAE --backbone-dir $R/sft/final --out-dir $R/reasoner
  SEED="--data.task.seed $s --loop.seed $s --loop.steps 100"
  $RL $SEED --model-dir $R/reasoner/final --out-dir $R/rl_own_base
  $GRPO $SEED --model-dir $R/sft/final --out-dir $R/grpo_own_base
  measured $s $R/sft/final $R/grpo_own_base/final $R/reasoner/final $R/rl_own_base/final
done
measured 0 $A/ar $A/grpo $A/stage1 $A/rl
for s in 1 2; do
  R=runs/cd3_tiny_seed$s
  SEED="--data.task.seed $((s + 1)) --loop.seed $((s + 1)) --loop.steps 150"
  $RL $SEED --model-dir $R/rl_own_base/final --out-dir $R/rl_own_base_more
  $GRPO $SEED --model-dir $R/grpo_own_base/final --out-dir $R/grpo_own_base_more
  measured_long $s $R/grpo_own_base_more/final $R/rl_own_base_more/final
done
measured_long 0 $A/grpo_long $A/rl_long
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_bases --over-seeds
