#!/usr/bin/env bash
# The table and the figure of the README: what recipes/own_seed_countdown3.sh, rl_density_countdown3.sh and
# rl_equal_examples_countdown3.sh measured. A second.
set -euo pipefail
cd "$(dirname "$0")/.."
RESULTS=runs/results
OUT=${OUT:-$RESULTS/cd3_main}
mkdir -p $OUT/eval
cp $RESULTS/cd3_own_seed/eval/1_ar.json $OUT/eval/0_ar.json
cp $RESULTS/cd3_own_seed/eval/3_ladir.json $OUT/eval/1_ladir.json
cp $RESULTS/cd3_equal_examples/eval/1_ar.json $OUT/eval/5_ar.json
for s in 0 1 2; do
  cp $RESULTS/cd3_density/eval/grpo_$s.json $OUT/eval/2_grpo_$s.json
  cp $RESULTS/cd3_density/eval/flow_1e-4_$s.json $OUT/eval/3_flow_$s.json
  cp $RESULTS/cd3_density/eval/flow_2e-4_$s.json $OUT/eval/4_flow_$s.json
  cp $RESULTS/cd3_equal_examples/eval/2_grpo_$s.json $OUT/eval/6_grpo_$s.json
done
ladi report $OUT --out $OUT/report.html --title "Countdown-3" --over-seeds --against "AR SFT + token GRPO" \
  --figure docs/pass_at_k.svg --markdown README.md#cd3
