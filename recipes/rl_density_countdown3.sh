#!/usr/bin/env bash
# LaDi-RL with the flow-matching loss of finished latents for their log-density, in place of that of their denoising transitions,
# at two learning rates: 100 batches of 24 puzzles x 32 texts, each used twice, from the models of recipes/own_seed_countdown3.sh,
# which comes before; beside token GRPO from that AR SFT. Three seeds of puzzles, rollouts and evaluation. Then the bundled models
# of cd3_one_block are copied. An hour and a quarter on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/own_seed1
OUT=${OUT:-runs/results/cd3_density}
P="--preset cd3_one_block"
EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"

flow() { # seed, learning rate
  ladi train rl $P --data.task.seed $1 --loop.seed $1 --policy.num-iterations 2 --loop.steps 200 --loop.optim.lr $2 \
    --model-dir $R/from_scratch/reasoner/final --policy.density flow_loss --policy.noise-level 0 \
    --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/flow_$2_$1
  $EVAL --sample.num-steps 10 --latent-use-samples 4 --seed $1 --model-dir $R/flow_$2_$1/final \
    --label "LaDiR + LaDi-RL, flow loss, $2" --json $OUT/eval/flow_$2_$1.json
}
token() { # seed
  ladi train grpo $P --data.task.seed $1 --loop.seed $1 --policy.num-iterations 2 --loop.steps 200 \
    --model-dir $R/from_scratch/sft/final --policy.num-generations 32 --out-dir $R/twice_grpo_$1
  $EVAL --sample.temperature 1.0 --latent-use-samples 0 --seed $1 --model-dir $R/twice_grpo_$1/final \
    --label "AR SFT + token GRPO" --json $OUT/eval/grpo_$1.json
}
for seed in 0 1 2; do
  flow $seed 1e-4
  flow $seed 2e-4
done
token 0 # that recipe has seed 1
token 2
cp runs/results/cd3_own_seed/eval/2_grpo.json $OUT/eval/grpo_1.json
cp runs/results/cd3_own_seed/eval/1_ar.json $OUT/eval/ar.json
cp runs/results/cd3_own_seed/eval/3_ladir.json $OUT/eval/ladir.json
cp runs/results/cd3_own_seed/eval/4_rl.json $OUT/eval/transitions_1.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_density --over-seeds --against "AR SFT + token GRPO"

# One seed: token GRPO at other learning rates, a hundred more batches of both, and latents drawn by the SDE.
OUT=runs/results/cd3_density_more
ONE="$P --policy.num-iterations 2 --loop.steps 200"
SAME="--data.task.seed 1 --loop.seed 1"
OTHERS="--data.task.seed 11 --loop.seed 11"
SIZE="--policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --loop.optim.lr 1e-4 --policy.density flow_loss"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
for lr in 5e-5 2e-4; do
  ladi train grpo $ONE $SAME --loop.optim.lr $lr --model-dir $R/from_scratch/sft/final --policy.num-generations 32 --out-dir $R/twice_grpo_$lr
  $EVAL --seed 1 $token --model-dir $R/twice_grpo_$lr/final --label "token GRPO, $lr" --json $OUT/eval/0_grpo_$lr.json
done
ladi train rl $ONE $OTHERS $SIZE --policy.noise-level 0 --model-dir $R/flow_1e-4_1/final --out-dir $R/flow_1e-4_1_more
$EVAL --seed 1 $latent --model-dir $R/flow_1e-4_1_more/final --label "LaDi-RL, flow loss, 1e-4, 200 batches" --json $OUT/eval/2_more.json
ladi train grpo $ONE $OTHERS --model-dir $R/twice_grpo/final --policy.num-generations 32 --out-dir $R/twice_grpo_more
$EVAL --seed 1 $token --model-dir $R/twice_grpo_more/final --label "token GRPO, 200 batches" --json $OUT/eval/1_grpo_more.json
ladi train rl $ONE $SAME $SIZE --policy.noise-level 0.7 --model-dir $R/from_scratch/reasoner/final --out-dir $R/flow_sde
$EVAL --seed 1 $latent --model-dir $R/flow_sde/final --label "LaDi-RL, flow loss, 1e-4, drawn by the SDE" --json $OUT/eval/3_sde.json
# A block per step, from the models of cd3_tiny.
ladi train rl --preset cd3_tiny --policy.num-iterations 2 --loop.steps 200 $SIZE --policy.noise-level 0 \
  --model-dir assets/cd3_tiny/stage1 --out-dir runs/cd3_tiny_flow
ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 $latent --model-dir runs/cd3_tiny_flow/final \
  --label "LaDi-RL, flow loss, 1e-4, a block per step" --json $OUT/eval/5_steps.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_density_more

F=$R/from_scratch
python recipes/bundle.py cd3_one_block ar=$F/sft vae=$F/vae stage1=$F/reasoner rl=$R/flow_1e-4_1 grpo=$R/twice_grpo
