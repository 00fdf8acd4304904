#!/usr/bin/env bash
# DLR on Countdown-3: a frozen 7.6M main model steered by a 0.9M assistant, beside token GRPO on the main model.
# 50 updates of 24 puzzles x 32 trajectories or texts; main rows with three seeds (of puzzles, rollouts and evaluation).
# An hour and a half on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_cd3
P="--preset dlr_cd3"
OUT=${OUT:-runs/results/dlr_cd3}
EVAL="ladi eval $P --num-questions 200 --num-samples 32 --ks 1 4 16 32"
token="--latent-use-samples 0 --sample.temperature 1.0"
latent="--latent-use-samples 4"
FEW="--policy.num-decoded 6"  # of 32: 19 %
CONTRAST="--policy.gamma 0.1"

ladi train sft $P
ladi train dlr-warmup $P
$EVAL $token --model-dir $R/sft/final --label "main alone" --json $OUT/eval/1_main.json
$EVAL $latent --model-dir $R/dlr_warmup/final --label "DLR, warm start only" --json $OUT/eval/3_warmup.json

trained() {  # name, label, seed, settings of the evaluation
  local name=$1 label=$2 s=$3
  shift 3
  $EVAL "$@" --seed $s --model-dir $R/${name}_$s/final --label "$label" --json $OUT/eval/${name}_$s.json
}
dlr() {  # name, label, seed, settings of the stage
  local name=4_$1 label=$2 s=$3
  shift 3
  ladi train dlr $P --data.task.seed $s --loop.seed $s --out-dir $R/${name}_$s "$@"
  trained $name "$label" $s $latent
}
for s in 0 1 2; do
  dlr value "DLR, 6 of 32 by value" $s $FEW --policy.filter value
  ladi train grpo $P --data.task.seed $s --loop.seed $s --policy.num-generations 32 --out-dir $R/2_grpo_$s
  trained 2_grpo "main + token GRPO" $s $token
  dlr all "DLR, 32 of 32" $s
done
dlr random "DLR, 6 of 32 at random" 0 $FEW --policy.filter random
dlr contrast "DLR, 32 of 32, contrastive loss" 0 $CONTRAST
dlr contrast_value "DLR, 6 of 32 by value, contrastive loss" 0 $CONTRAST $FEW --policy.filter value
dlr main_trained "DLR, 32 of 32, main trained too" 0 --policy.text-weight 0.1 --policy.temperature 1.0 --train-main \
  --loop.optim.lr 1e-4

# Greedy: the main model at temperature 0, DLR at the means of its latents.
greedy="--num-samples 1 --ks 1 --latent-use-samples 0"
$EVAL $greedy --model-dir $R/sft/final --label "main alone, greedy" --json $OUT/eval/5_main.json
for s in 0 1 2; do
  $EVAL $greedy --seed $s --model-dir $R/2_grpo_$s/final --label "main + token GRPO, greedy" --json $OUT/eval/5_grpo_$s.json
  $EVAL $greedy --seed $s --sample.initial-noise 0 --model-dir $R/4_value_$s/final \
    --label "DLR, 6 of 32 by value, means" --json $OUT/eval/5_value_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_cd3 --over-seeds
