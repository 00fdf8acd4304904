#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3 at equal wall time: 100 updates of LaDi-RL take as long as 173 of GRPO (`ladi bench rl`:
# 1.36 and 0.79 s an update). Continues the bundled models of recipes/countdown3.sh; one seed, ten minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_rl_walltime}
P="--preset cd3_tiny"
ladi train grpo $P --model-dir $A/grpo --policy.num-generations 32 --loop.steps 73 --data.task.seed 1 --loop.seed 1 \
  --out-dir runs/cd3_tiny/grpo_walltime

EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
$EVAL --sample.temperature 1.0 --model-dir runs/cd3_tiny/grpo_walltime/final --latent-use-samples 0 \
  --label "AR SFT + token GRPO, 173 updates" --json $OUT/eval/1_grpo.json
$EVAL --sample.num-steps 10 --model-dir $A/rl --latent-use-samples 0 --label "LaDiR + LaDi-RL, 100 updates" --json $OUT/eval/2_rl.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_walltime
