#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3 for a thousand updates of 24 puzzles x 32 texts: the models of 250 updates of
# recipes/countdown3.sh, 250 and 500 more on other puzzles. One seed. An hour on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/rl_long
grpo=runs/cd3_tiny/grpo_more/final rl=runs/cd3_tiny/rl_more/final
OUT=${OUT:-runs/results/cd3_rl_long}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"

$EVAL $token --model-dir $grpo --label "token GRPO, 250 updates" --json $OUT/eval/1_grpo_0250.json
$EVAL $latent --model-dir $rl --label "LaDi-RL, 250 updates" --json $OUT/eval/2_rl_0250.json
for part in "500 250 2" "1000 500 3"; do  # updates in all, of these new, seed of puzzles and rollouts
  read -r n new seed <<< "$part"
  P="--preset cd3_tiny --loop.steps $new --data.task.seed $seed --loop.seed $seed"
  ladi train grpo $P --model-dir $grpo --policy.num-generations 32 --out-dir $R/grpo_$n
  grpo=$R/grpo_$n/final
  $EVAL $token --model-dir $grpo --label "token GRPO, $n updates" --json $OUT/eval/1_grpo_$(printf %04d $n).json
  ladi train rl $P --model-dir $rl --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/rl_$n
  rl=$R/rl_$n/final
  $EVAL $latent --model-dir $rl --label "LaDi-RL, $n updates" --json $OUT/eval/2_rl_$(printf %04d $n).json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_long
