#!/usr/bin/env bash
# DLR on arithmetic chains, beside token GRPO on a main model of 0.9M that has not learned them well; the assistant starts
# from the same weights. 50 updates of 24 questions x 32, one seed; GRPO at three learning rates. Twenty minutes on two cores;
# every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/dlr_arithmetic
OUT=runs/results/dlr_arithmetic
P="--preset dlr_arithmetic"
MAIN=runs/arithmetic_tiny/sft/final
EVAL="ladi eval $P --num-questions 200 --num-samples 32 --ks 1 4 16 32"
token="--latent-use-samples 0 --sample.temperature 1.0"
latent="--latent-use-samples 4"
greedy="--num-samples 1 --ks 1 --latent-use-samples 0"

ladi train sft --preset arithmetic_tiny --loop.steps 250
ladi train dlr-warmup $P --main $MAIN --backbone.name-or-path $MAIN --loop.steps 450 --free-steps 150 --beta-warmup-steps 200
ladi train dlr $P --policy.num-decoded 6 --policy.filter value
for lr in 1e-5 3e-5 1e-4; do
  ladi train grpo $P --model-dir $MAIN --policy.num-generations 32 --loop.optim.lr $lr --out-dir $R/grpo_$lr
  $EVAL $token --model-dir $R/grpo_$lr/final --label "main + token GRPO, lr $lr" --json $OUT/eval/2_grpo_$lr.json
  $EVAL $greedy --model-dir $R/grpo_$lr/final --label "main + token GRPO, lr $lr, greedy" --json $OUT/eval/9_grpo_$lr.json
done
$EVAL $token --model-dir $MAIN --label "main alone" --json $OUT/eval/1_main.json
$EVAL $latent --model-dir $R/dlr_warmup/final --label "DLR, warm start only" --json $OUT/eval/3_warmup.json
$EVAL $latent --model-dir $R/dlr/final --label "DLR, 6 of 32 by value" --json $OUT/eval/4_dlr.json
$EVAL $token --model-dir $MAIN --label "main alone, after DLR" --json $OUT/eval/5_main_after.json
$EVAL $greedy --model-dir $MAIN --label "main alone, greedy" --json $OUT/eval/9_main.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#dlr_arithmetic
