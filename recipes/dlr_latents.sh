#!/usr/bin/env bash
# How many latents DLR needs, on Countdown-3 beside a main model of 0.9M: warm start and 50 updates each, one seed; eight are
# those of recipes/dlr_countdown3.sh. A quarter of an hour on two cores. Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_latents
OUT=runs/results/dlr_latents
EVAL="ladi eval --preset dlr_cd3 --num-questions 200 --num-samples 32 --ks 1 4 16 32 --latent-use-samples 4"

measured() {  # latents, folder of the warm start, folder of DLR
  $EVAL --model-dir $2/final --label "$1 latents, warm start" --json $OUT/eval/$(printf %02d $1)_warm.json
  $EVAL --model-dir $3/final --label "$1 latents, DLR, 6 of 32 by value" --json $OUT/eval/$(printf %02d $1)_with_dlr.json
}
measured 8 runs/dlr_cd3_small/dlr_warmup runs/dlr_cd3_small/4_value_0
for T in 2 16; do
  ladi train dlr-warmup --preset dlr_cd3 --main assets/cd3_tiny/ar --assistant.num-latents $T --out-dir $R/warm_$T
  ladi train dlr --preset dlr_cd3 --model-dir $R/warm_$T/final --policy.num-decoded 6 --policy.filter value --out-dir $R/dlr_$T
  measured $T $R/warm_$T $R/dlr_$T
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_latents
