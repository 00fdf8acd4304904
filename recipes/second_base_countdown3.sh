#!/usr/bin/env bash
# Does what recipes/rl_density_countdown3.sh found hold from another base? The bundled AR SFT of cd3_tiny (seed 0), a VAE whose
# decoder starts without the context, and stage 1, as preset cd3_one_block has them; then 100 batches of 24 puzzles x 32 texts, each
# used twice, of LaDi-RL by the flow-matching loss, with three seeds. Token GRPO from that AR SFT, at as many texts, is that of
# recipes/rl_copies_twice_countdown3.sh, which comes before. An hour and three quarters on two cores; every command resumes.
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
for seed in 0 1 2; do
  ladi train rl $P --data.task.seed $seed --loop.seed $seed --policy.num-iterations 2 --loop.steps 200 \
    --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --out-dir $R/flow_$seed
  $EVAL $latent --seed $seed --model-dir $R/flow_$seed/final --label "LaDiR + LaDi-RL, flow loss, 1e-4" --json $OUT/eval/3_flow_$seed.json
  cp runs/results/cd3_copies_twice/eval/1_grpo_$seed.json $OUT/eval/2_grpo_$seed.json
done
$EVAL --sample.temperature 1.0 --latent-use-samples 0 --model-dir assets/cd3_tiny/ar --label "AR SFT" --json $OUT/eval/0_ar.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_second_base --over-seeds --against "AR SFT + token GRPO"
