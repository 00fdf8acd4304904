#!/usr/bin/env bash
# DLR on Countdown-3: a frozen 7.6M main model steered by a 0.9M assistant, beside token GRPO on the main model.
# Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_cd3
P="--preset dlr_cd3"
OUT=${OUT:-runs/results/dlr_cd3}

ladi train sft $P
ladi train dlr-warmup $P
ladi train grpo $P --policy.num-generations 32

DLR="ladi train dlr $P"
FEW="--policy.num-decoded 6"    # 18 % of 32, rounded
$DLR --out-dir $R/dlr_all
$DLR --out-dir $R/dlr_random $FEW --policy.filter random
$DLR --out-dir $R/dlr_value $FEW --policy.filter value
$DLR --out-dir $R/dlr_no_contrast --policy.gamma 0.0
$DLR --out-dir $R/dlr_main_trained --policy.text-weight 0.1 --policy.temperature 1.0 --train-main

EVAL="ladi eval $P --num-questions 200 --num-samples 64 --ks 1 4 16 64"
$EVAL --latent-use-samples 0 --model-dir $R/sft/final --sample.temperature 1.0 --label "main, T = 1" --json $OUT/eval/1_main.json
$EVAL --latent-use-samples 0 --model-dir $R/sft/final --num-samples 1 --ks 1 --label "main, greedy" --json $OUT/eval/1_main_greedy.json
$EVAL --latent-use-samples 0 --model-dir $R/grpo/final --sample.temperature 1.0 --label "main + token GRPO" --json $OUT/eval/2_grpo.json
for name in dlr_warmup dlr_all dlr_random dlr_value dlr_no_contrast dlr_main_trained; do
  $EVAL --latent-use-samples 4 --model-dir $R/$name/final --label "$name" --json $OUT/eval/3_$name.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_cd3
