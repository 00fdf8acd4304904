#!/usr/bin/env bash
# DLR on Countdown-3 beside token GRPO on the main model: a 0.9M assistant steers a frozen main model of 0.9M (the bundled
# AR SFT model) and one of 7.6M. 50 updates of 24 puzzles x 32 trajectories or texts; three seeds of puzzles, rollouts and
# evaluation. Two and a half hours on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset dlr_cd3"
FEW="--policy.num-decoded 6"  # of 32: 19 %
VALUE="$FEW --policy.filter value"
CONTRAST="--policy.gamma 0.1"
EVAL="ladi eval $P --num-questions 200 --num-samples 32 --ks 1 4 16 32"
token="--latent-use-samples 0 --sample.temperature 1.0"
latent="--latent-use-samples 4"
greedy="--num-samples 1 --ks 1 --latent-use-samples 0"

grpo() {  # name, seed, main model: train and measure it, sampled and greedy
  ladi train grpo $P --model-dir $3 --policy.num-generations 32 --data.task.seed $2 --loop.seed $2 --out-dir $R/$1_$2
  $EVAL $token --seed $2 --model-dir $R/$1_$2/final --label "main + token GRPO" --json $OUT/eval/$1_$2.json
  $EVAL $greedy --seed $2 --model-dir $R/$1_$2/final --label "main + token GRPO, greedy" --json $OUT/eval/9_$1_$2.json
}
dlr() {  # name, label, seed, settings of the stage: train and measure it, sampled and at the means of its latents
  local name=$1 label=$2 s=$3
  shift 3
  ladi train dlr $P --model-dir $R/dlr_warmup/final --data.task.seed $s --loop.seed $s --out-dir $R/${name}_$s "$@"
  $EVAL $latent --seed $s --model-dir $R/${name}_$s/final --label "$label" --json $OUT/eval/${name}_$s.json
  $EVAL $greedy --sample.initial-noise 0 --seed $s --model-dir $R/${name}_$s/final --label "$label, means" --json $OUT/eval/9_${name}_$s.json
}
before() {  # main model: it alone, and after the warm start
  $EVAL $token --model-dir $1 --label "main alone" --json $OUT/eval/1_main.json
  $EVAL $greedy --model-dir $1 --label "main alone, greedy" --json $OUT/eval/9_1_main.json
  $EVAL $latent --model-dir $R/dlr_warmup/final --label "DLR, warm start only" --json $OUT/eval/3_warm.json
}

# A main model of 0.9M.
R=runs/dlr_cd3_small
OUT=runs/results/dlr_cd3_small
AR=assets/cd3_tiny/ar
ladi train dlr-warmup $P --main $AR --out-dir $R/dlr_warmup
before $AR
for s in 0 1 2; do
  grpo 2_grpo $s $AR
  dlr 4_value "DLR, 6 of 32 by value" $s $VALUE
  dlr 4_all "DLR, 32 of 32" $s
  dlr 5_random "DLR, 6 of 32 at random" $s $FEW --policy.filter random
  dlr 6_contrast "DLR, 32 of 32, contrastive loss" $s $CONTRAST
  dlr 6_contrast_value "DLR, 6 of 32 by value, contrastive loss" $s $CONTRAST $VALUE
done
dlr 7_main_trained "DLR, 32 of 32, main trained too" 0 --policy.text-weight 1.0 --policy.temperature 1.0 --train-main \
  --loop.optim.lr 1e-4
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_cd3_small --over-seeds \
  --against "main + token GRPO"

# A main model of 7.6M.
R=runs/dlr_cd3
OUT=runs/results/dlr_cd3
MAIN=$R/sft/final
ladi train sft $P
ladi train dlr-warmup $P --out-dir $R/dlr_warmup
before $MAIN
for s in 0 1 2; do
  grpo 2_grpo $s $MAIN
  dlr 4_value "DLR, 6 of 32 by value" $s $VALUE
  dlr 4_all "DLR, 32 of 32" $s
done
dlr 5_random "DLR, 6 of 32 at random" 0 $FEW --policy.filter random
dlr 5_value_150 "DLR, 6 of 32 by value, 150 updates" 0 $VALUE --loop.steps 150
dlr 6_contrast "DLR, 32 of 32, contrastive loss" 0 $CONTRAST
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_cd3 --over-seeds \
  --against "main + token GRPO"
