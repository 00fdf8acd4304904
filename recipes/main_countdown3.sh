#!/usr/bin/env bash
# The table and the figure of the README: what recipes/draws_countdown3.sh, rl_copies_twice_countdown3.sh and
# rl_equal_examples_countdown3.sh measured, beside AR SFT. A minute on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
RESULTS=runs/results
OUT=${OUT:-$RESULTS/cd3_main}
mkdir -p $OUT/eval
ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --sample.temperature 1.0 --latent-use-samples 0 \
  --model-dir assets/cd3_tiny/ar --label "AR SFT" --json $OUT/eval/0_ar.json
cp $RESULTS/cd3_copies_twice/eval/*.json $OUT/eval/
cp $RESULTS/cd3_copies_rl/eval/3_ladir.json $OUT/eval/1_ladir.json
cp $RESULTS/cd3_equal_examples/eval/1_ar.json $OUT/eval/3_ar.json
for s in 0 1 2; do
  cp $RESULTS/cd3_equal_examples/eval/2_grpo_$s.json $OUT/eval/3_grpo_$s.json
done
ladi report $OUT --out $OUT/report.html --title "Countdown-3" --over-seeds --against "AR SFT + token GRPO" \
  --figure docs/pass_at_k.svg --markdown README.md#cd3
