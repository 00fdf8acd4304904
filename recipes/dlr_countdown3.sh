#!/usr/bin/env bash
# DLR on Countdown-3: a frozen 7.6M main model steered by a 0.9M assistant, beside token GRPO on the main model.
# 24 puzzles an update, 50 updates each, one seed: an hour on two cores. Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_cd3
P="--preset dlr_cd3"
OUT=${OUT:-runs/results/dlr_cd3}
EVAL="ladi eval $P --num-questions 200 --num-samples 32 --ks 1 4 16 32"
token="--latent-use-samples 0 --sample.temperature 1.0"

ladi train sft $P --loop.steps 1000
$EVAL $token --model-dir $R/sft/final --label "main alone, T = 1" --json $OUT/eval/1_main.json
$EVAL --latent-use-samples 0 --num-samples 1 --ks 1 --model-dir $R/sft/final --label "main alone, greedy" --json $OUT/eval/1_main_greedy.json

ladi train dlr-warmup $P --loop.steps 600
$EVAL --latent-use-samples 4 --model-dir $R/dlr_warmup/final --label "DLR, warm start only" --json $OUT/eval/3_warmup.json
for scale in 3 6; do  # of the policy's noise
  $EVAL --latent-use-samples 0 --model-dir $R/dlr_warmup/final --sample.initial-noise $scale \
    --label "DLR, warm start only, noise x $scale" --json $OUT/eval/3_warmup_noise_$scale.json
done

ladi train grpo $P --loop.steps 50 --policy.num-generations 32
$EVAL $token --model-dir $R/grpo/final --label "main + token GRPO, 32 decoded" --json $OUT/eval/2_grpo.json

dlr() {  # name, label, settings of the stage
  local name=$1 label=$2
  shift 2
  ladi train dlr $P --loop.steps 50 --out-dir $R/dlr_$name "$@"
  $EVAL --latent-use-samples 4 --model-dir $R/dlr_$name/final --label "$label" --json $OUT/eval/4_$name.json
}
FEW="--policy.num-decoded 6"  # of 32: 19 %
dlr all "DLR, 32 of 32 decoded"
dlr value "DLR, 6 of 32 by value" $FEW --policy.filter value
dlr random "DLR, 6 of 32 at random" $FEW --policy.filter random
dlr no_contrast "DLR, 32 of 32, no contrastive loss" --policy.gamma 0.0
dlr main_trained "DLR, 32 of 32, main trained too" --policy.text-weight 0.1 --policy.temperature 1.0 --train-main

# A policy that explores more; without the contrastive loss; at ten times the learning rate, with and without the KL term.
quiet() {  # name, label: with a quarter of the policy's noise
  $EVAL --latent-use-samples 0 --model-dir $R/dlr_$1/final --sample.initial-noise 0.25 --label "$2, noise x 0.25" \
    --json $OUT/eval/4_$1_quiet.json
}
WIDE="DLR, 32 of 32, std 1.2"
FREE="$WIDE, no contrastive loss"
dlr std12 "$WIDE" --std 1.2
quiet std12 "$WIDE"
dlr std12_alone "$FREE" --std 1.2 --policy.gamma 0.0
quiet std12_alone "$FREE"
dlr std12_fast "$FREE, lr 3e-4" --std 1.2 --policy.gamma 0.0 --loop.optim.lr 3e-4
dlr std12_free "$FREE, lr 3e-4, no KL" --std 1.2 --policy.gamma 0.0 --loop.optim.lr 3e-4 --policy.beta 0.0

ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_cd3
