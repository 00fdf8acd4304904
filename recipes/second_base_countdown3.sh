#!/usr/bin/env bash
# Does what recipes/rl_density_countdown3.sh found hold from another base? The bundled AR SFT of cd3_tiny (seed 0), a VAE whose
# decoder starts without the context, and stage 1, as preset cd3_one_block has them; then 100 batches of 24 puzzles x 32 texts, each
# used twice, of LaDi-RL by the flow-matching loss at two learning rates, with two seeds. Token GRPO from that AR SFT, at as many
# texts, is that of recipes/rl_copies_twice_countdown3.sh, which comes before. An hour and three quarters on two cores; training resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd3_one_block"
R=runs/cd3_one_block
OUT=${OUT:-runs/results/cd3_second_base}
EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
latent="--sample.num-steps 10 --latent-use-samples 4"

ladi train vae $P --backbone-dir assets/cd3_tiny/ar
ladi train reasoner $P --backbone-dir assets/cd3_tiny/ar
$EVAL $latent --model-dir $R/reasoner/final --label LaDiR --json $OUT/eval/1_ladir.json

flow() { # seed, learning rate, folder, record
  ladi train rl $P --data.task.seed $1 --loop.seed $1 --policy.num-iterations 2 --loop.steps 200 --loop.optim.lr $2 \
    --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/$3_$1
  $EVAL $latent --seed $1 --model-dir $R/$3_$1/final --label "LaDiR + LaDi-RL, flow loss, $2" --json $OUT/eval/$4_flow_$1.json
}
for seed in 0 1; do
  flow $seed 1e-4 flow 3
  flow $seed 2e-4 flow_2e-4 4
done
$EVAL --sample.temperature 1.0 --latent-use-samples 0 --model-dir assets/cd3_tiny/ar --label "AR SFT" --json $OUT/eval/0_ar.json
for seed in 0 1 2; do
  cp runs/results/cd3_copies_twice/eval/1_grpo_$seed.json $OUT/eval/2_grpo_$seed.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_second_base --over-seeds --against "AR SFT + token GRPO"
