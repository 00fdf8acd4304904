#!/usr/bin/env bash
# How many latents DLR needs, on Countdown-3 beside a main model of 0.9M: warm start and 50 updates each, one seed.
# Half an hour on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_latents
OUT=runs/results/dlr_latents
EVAL="ladi eval --preset dlr_cd3 --num-questions 200 --num-samples 32 --ks 1 4 16 32 --latent-use-samples 4"

for T in 2 8 16 32; do
  ladi train dlr-warmup --preset dlr_cd3 --main assets/cd3_tiny/ar --assistant.num-latents $T --out-dir $R/warm_$T
  ladi train dlr --preset dlr_cd3 --model-dir $R/warm_$T/final --policy.num-decoded 6 --policy.filter value --out-dir $R/dlr_$T
  name=$OUT/eval/$(printf %02d $T)
  $EVAL --model-dir $R/warm_$T/final --label "$T latents, warm start" --json ${name}_warm.json
  $EVAL --model-dir $R/dlr_$T/final --label "$T latents, DLR, 6 of 32 by value" --json ${name}_with_dlr.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_latents
