#!/usr/bin/env bash
# Two optimizer steps from each batch of texts, from the stage 1 of one block and sixteen copies that recipes/draws_countdown3.sh
# trains: 100 batches of 24 puzzles x 32 texts of LaDi-RL, beside token GRPO from the bundled AR SFT, three seeds of puzzles,
# rollouts and evaluation. Forty minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_copies_twice}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
for s in 0 1 2; do
  P="--preset cd3_tiny --data.task.seed $s --loop.seed $s --policy.num-iterations 2 --loop.steps 200"
  ladi train rl $P --model-dir $R/reasoner_16/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
    --out-dir $R/twice_rl_$s
  $EVAL --sample.num-steps 10 --latent-use-samples 4 --seed $s --model-dir $R/twice_rl_$s/final \
    --label "LaDiR, one block, 16 copies + LaDi-RL" --json $OUT/eval/2_rl_$s.json
  ladi train grpo $P --model-dir assets/cd3_tiny/ar --policy.num-generations 32 --out-dir $R/twice_grpo_$s
  $EVAL --sample.temperature 1.0 --latent-use-samples 0 --seed $s --model-dir $R/twice_grpo_$s/final --label "AR SFT + token GRPO" \
    --json $OUT/eval/1_grpo_$s.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_copies_twice --over-seeds --against "AR SFT + token GRPO"
