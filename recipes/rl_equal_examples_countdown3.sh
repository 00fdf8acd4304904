#!/usr/bin/env bash
# Token GRPO from AR SFT that was trained on as many examples as stages 1 and 2 are, after recipes/rl_copies_twice_countdown3.sh:
# 100 batches of 24 puzzles x 32 texts, each used twice, three seeds of puzzles, rollouts and evaluation. Forty-five minutes on two
# cores, most of it AR SFT; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_tiny_long
OUT=${OUT:-runs/results/cd3_equal_examples}
P="--preset cd3_tiny"
EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --sample.temperature 1.0 --latent-use-samples 0"
ladi train sft $P --loop.steps 8800 --out-dir $R/sft
$EVAL --model-dir $R/sft/final --label "AR SFT, 8,800 steps" --json $OUT/eval/1_ar.json
for s in 0 1 2; do
  ladi train grpo $P --data.task.seed $s --loop.seed $s --policy.num-iterations 2 --loop.steps 200 --model-dir $R/sft/final \
    --policy.num-generations 32 --out-dir $R/grpo_twice_$s
  $EVAL --seed $s --model-dir $R/grpo_twice_$s/final --label "AR SFT, 8,800 steps + token GRPO" --json $OUT/eval/2_grpo_$s.json
  cp runs/results/cd3_copies_twice/eval/2_rl_$s.json $OUT/eval/3_rl_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_equal_examples --over-seeds \
  --against "AR SFT, 8,800 steps + token GRPO"
