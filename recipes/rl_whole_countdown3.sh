#!/usr/bin/env bash
# LaDi-RL from the reasoner of one block (recipes/whole_countdown3.sh) beside token GRPO from the bundled AR SFT: 100 updates of
# 24 puzzles x 32 texts, three seeds of puzzles, rollouts and evaluation; then, one seed, two optimizer steps from each batch.
# Fifty minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_whole_rl}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"

reinforced() {  # folder, seed, label, settings
  P="--preset cd3_tiny --data.task.seed $2 --loop.seed $2 $4"
  ladi train rl $P --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 \
    --policy.replay-steps 5 --out-dir $R/rl_$1
  $EVAL $latent --seed $2 --model-dir $R/rl_$1/final --label "LaDiR, one block + LaDi-RL$3" --json $OUT/eval/4_rl_$1.json
  ladi train grpo $P --model-dir $A/ar --policy.num-generations 32 --out-dir $R/grpo_$1
  $EVAL $token --seed $2 --model-dir $R/grpo_$1/final --label "AR SFT + token GRPO$3" --json $OUT/eval/2_grpo_$1.json
}
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR, one block" --json $OUT/eval/3_ladir.json
for s in 0 1 2; do reinforced $s $s "" "--loop.steps 100"; done
reinforced twice 0 ", each batch twice" "--loop.steps 200 --policy.num-iterations 2"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_whole_rl --over-seeds --against "AR SFT + token GRPO"
