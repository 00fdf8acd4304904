#!/usr/bin/env bash
# Countdown-3 with the papers' frozen VAE decoder in place of the preset's trained one, at the preset's full length: VAE (it reads the
# context), stages 1 and 2, and 100 updates of LaDi-RL, to be read beside the rows of recipes/eval_countdown3.sh and
# recipes/rl_countdown3.sh. One seed. An hour and a half on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_frozen
OUT=${OUT:-runs/results/cd3_frozen}
P="--preset cd3_tiny"
LATENTS="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
ladi train vae $P --backbone-dir assets/cd3_tiny/ar --vae.decoder frozen --out-dir $R/vae
ladi train reasoner $P --backbone-dir assets/cd3_tiny/ar $LATENTS --out-dir $R/reasoner
ladi train rollout $P $LATENTS --reasoner-dir $R/reasoner/final --out-dir $R/rollout
ladi train rl $P --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
  --loop.steps 100 --out-dir $R/rl

EVAL="ladi eval $P --num-questions 500 --latent-use-samples 4"
$EVAL --num-samples 100 --model-dir $R/reasoner/final --label "LaDiR, frozen decoder" --json $OUT/eval/1_stage1.json
$EVAL --num-samples 100 --model-dir $R/rollout/final --label "the same with stage 2" --json $OUT/eval/2_stage2.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_frozen

EVAL="$EVAL --num-samples 128 --ks 1 4 16 64 128 --sample.num-steps 10"
$EVAL --model-dir $R/reasoner/final --label "LaDiR, frozen decoder" --json ${OUT}_rl/eval/1_stage1.json
$EVAL --model-dir $R/rl/final --label "the same + LaDi-RL" --json ${OUT}_rl/eval/2_rl.json
ladi report ${OUT}_rl --out ${OUT}_rl/table.html --markdown docs/results.md#cd3_frozen_rl
