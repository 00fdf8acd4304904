#!/usr/bin/env bash
# How much of the coverage that reinforcement learning costs comes back if the finished models sample wider: LaDi-RL from initial noise
# of 1.5 and 2 standard deviations, token GRPO at temperatures of 1.5 and 2. After recipes/rl_density_countdown3.sh and
# recipes/whole_countdown4.sh. A quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

wider() { # folder of results, label of LaDi-RL, token GRPO, LaDi-RL
  local latent="--sample.num-steps 10 --sample.initial-noise"
  for x in 1.5 2.0; do
    $EVAL $latent $x --model-dir $4/final --label "$2" --json $1/eval/3_flow_$x.json
    $EVAL --sample.temperature $x --model-dir $3/final --label "AR SFT + token GRPO" --json $1/eval/1_grpo_$x.json
  done
}
SIZE="--num-questions 500 --num-samples 128 --ks 1 4 16 64 128"

R=runs/own_seed1
OUT=runs/results/cd3_wider
EVAL="ladi eval --preset cd3_one_block $SIZE --seed 1 --latent-use-samples 0"
wider $OUT "LaDiR + LaDi-RL, flow loss, 1e-4" $R/twice_grpo $R/flow_1e-4_1
D=runs/results/cd3_density/eval
cp $D/ar.json $OUT/eval/0_ar.json
cp $D/grpo_1.json $OUT/eval/1_grpo.json
cp $D/ladir.json $OUT/eval/2_ladir.json
cp $D/flow_1e-4_1.json $OUT/eval/3_flow.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_wider --figure docs/coverage.svg --figure-shows coverage

R=runs/cd4_one_block
OUT=runs/results/cd4_wider
EVAL="ladi eval --preset cd4_one_block $SIZE --latent-use-samples 0"
wider $OUT "LaDiR + LaDi-RL, flow loss" $R/grpo $R/flow
D=runs/results/cd4_whole/eval
cp $D/1_ar.json $OUT/eval/0_ar.json
cp $D/2_grpo.json $OUT/eval/1_grpo.json
cp $D/3_ladir.json $OUT/eval/2_ladir.json
cp $D/8_flow.json $OUT/eval/3_flow.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4_wider
