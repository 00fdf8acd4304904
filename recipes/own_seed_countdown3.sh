#!/usr/bin/env bash
# Everything anew with another seed, its own AR SFT, VAE, latents and stage 1 (`ladi quickstart --from-scratch`), then two optimizer
# steps from each of 100 batches of 24 puzzles x 32 texts of LaDi-RL, beside token GRPO from that AR SFT: does what
# recipes/rl_copies_twice_countdown3.sh found hold from another base? Two hours on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/own_seed1
OUT=${OUT:-runs/results/cd3_own_seed}
ladi quickstart --from-scratch --preset cd3_one_block --seed 1 --out-dir $R

EVAL="ladi eval --preset cd3_one_block --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --seed 1"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
TWICE="--preset cd3_one_block --data.task.seed 1 --loop.seed 1 --policy.num-iterations 2 --loop.steps 200"
transitions="--policy.density transitions --policy.noise-level 0.7 --loop.optim.lr 2e-4"
base=$R/from_scratch
$EVAL $token --model-dir $base/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $latent --model-dir $base/reasoner/final --label "LaDiR" --json $OUT/eval/3_ladir.json
$EVAL $latent --model-dir $base/rollout/final --label "LaDiR with stage 2" --json $OUT/eval/5_stage2.json
ladi train rl $TWICE $transitions --model-dir $base/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
  --out-dir $R/twice_rl
$EVAL $latent --model-dir $R/twice_rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl.json
ladi train grpo $TWICE --model-dir $base/sft/final --policy.num-generations 32 --out-dir $R/twice_grpo
$EVAL $token --model-dir $R/twice_grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_own_seed --against "AR SFT + token GRPO"
