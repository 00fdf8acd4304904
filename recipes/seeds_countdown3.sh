#!/usr/bin/env bash
# The main rows of Countdown-3 with two more seeds (of initial weights, noise, rollouts and evaluation), on the same VAE.
# An hour and a quarter on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/results/cd3_seeds}
VAE=runs/cd3_tiny

for s in 1 2; do
  R=runs/cd3_tiny_seed$s
  P="--preset cd3_tiny --loop.seed $s"
  ladi train sft $P --backbone.seed $s --out-dir $R/sft
  ladi train reasoner $P --backbone-dir $R/sft/final --vae-dir $VAE/vae/final --latents-path $VAE/latents.safetensors \
    --out-dir $R/reasoner
  ladi train grpo $P --model-dir $R/sft/final --policy.num-generations 32 --out-dir $R/grpo
  ladi train rl $P --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
    --out-dir $R/rl
done

for s in 0 1 2; do
  if [ $s = 0 ]; then
    ar=assets/cd3_tiny/ar grpo=assets/cd3_tiny/grpo ladir=assets/cd3_tiny/stage1 rl=assets/cd3_tiny/rl
  else
    R=runs/cd3_tiny_seed$s
    ar=$R/sft/final grpo=$R/grpo/final ladir=$R/reasoner/final rl=$R/rl/final
  fi
  EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 100 --seed $s --latent-use-samples 0"
  $EVAL --sample.temperature 1.0 --model-dir $ar --label "AR SFT" --json $OUT/eval/1_ar_$s.json
  $EVAL --sample.temperature 1.0 --model-dir $grpo --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_$s.json
  $EVAL --sample.num-steps 10 --model-dir $ladir --label "LaDiR" --json $OUT/eval/3_ladir_$s.json
  $EVAL --sample.num-steps 10 --model-dir $rl --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl_$s.json
done
ladi report $OUT --out $OUT/report.html --title "Countdown-3, three seeds" --markdown docs/results.md#cd3_seeds --over-seeds
