#!/usr/bin/env bash
# Token GRPO on Countdown-3 for as long as LaDi-RL takes for its 100 updates (recipes/rl_countdown3.sh): 173 updates, by
# 1.36 and 0.79 s an update (`ladi bench rl` at commit 4572fc9 on an Intel Xeon). Continues the 100 updates of
# recipes/countdown3.sh; one seed, three minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/results/cd3_rl_walltime}
P="--preset cd3_tiny"
ladi train grpo $P --model-dir runs/cd3_tiny/grpo/final --policy.num-generations 32 --loop.steps 73 --data.task.seed 1 --loop.seed 1 \
  --out-dir runs/cd3_tiny/grpo_walltime

EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
$EVAL --sample.temperature 1.0 --model-dir runs/cd3_tiny/grpo_walltime/final --latent-use-samples 0 \
  --label "AR SFT + token GRPO, 173 updates" --json $OUT/eval/1_grpo.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_walltime
