#!/usr/bin/env bash
# How many noisy copies of a block should share one context in stage 1? 1,500 steps on the latents of one block (after
# recipes/start_countdown3.sh, whose run from AR SFT has the preset's four). Half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_draws}
VAE="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 20 --ks 1 5 20 --sample.num-steps 10 --latent-use-samples 4"
$EVAL --model-dir $R/from_ar/final --label "4 copies" --json $OUT/eval/4.json
for draws in 16 64; do
  ladi train reasoner --preset cd3_tiny --backbone-dir assets/cd3_tiny/ar $VAE --max-blocks 1 --loop.steps 1500 \
    --loss.noise-draws $draws --out-dir $R/draws_$draws
  $EVAL --model-dir $R/draws_$draws/final --label "$draws copies" --json $OUT/eval/$draws.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_draws
