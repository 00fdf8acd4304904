#!/usr/bin/env bash
# How many noisy copies of a block should share one context in stage 1: the preset's 4, or 16? On the latents of one block, after
# recipes/whole_countdown3.sh and start_countdown3.sh (whose run from AR SFT has the 4): 1,500 steps of both, then the whole of
# the 16, with stage 2, and three seeds of LaDi-RL from it beside token GRPO. Two hours on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_whole
RESULTS=runs/results
P="--preset cd3_tiny"
VAE="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
EVAL="ladi eval $P --num-questions 500 --latent-use-samples 4"

short="$EVAL --num-samples 20 --ks 1 5 20 --sample.num-steps 10"
ladi train reasoner $P --backbone-dir $A/ar $VAE --max-blocks 1 --loop.steps 1500 --loss.noise-draws 16 --out-dir $R/draws_16
$short --model-dir $R/from_ar/final --label "4 copies" --json $RESULTS/cd3_draws/eval/04.json
$short --model-dir $R/draws_16/final --label "16 copies" --json $RESULTS/cd3_draws/eval/16.json
ladi report $RESULTS/cd3_draws --out $RESULTS/cd3_draws/table.html --markdown docs/results.md#cd3_draws

ladi train reasoner $P --backbone-dir $A/ar $VAE --max-blocks 1 --loss.noise-draws 16 --out-dir $R/reasoner_16
$EVAL --num-samples 100 --model-dir $R/reasoner_16/final --label "LaDiR, one block, 16 copies" --json $RESULTS/cd3_draws_long/eval/1_stage1.json
ladi train rollout $P $VAE --reasoner-dir $R/reasoner_16/final --out-dir $R/rollout_16
$EVAL --num-samples 100 --model-dir $R/rollout_16/final --label "the same with stage 2" --json $RESULTS/cd3_draws_long/eval/2_stage2.json
cp $RESULTS/cd3_whole/eval/1_stage1.json $RESULTS/cd3_draws_long/eval/0_four.json
ladi report $RESULTS/cd3_draws_long --out $RESULTS/cd3_draws_long/table.html --markdown docs/results.md#cd3_draws_long \
  --against "LaDiR, one block"

many="$EVAL --num-samples 128 --ks 1 4 16 64 128"
latent="--sample.num-steps 10"
OUT=$RESULTS/cd3_copies_rl
$many $latent --model-dir $R/reasoner_16/final --label "LaDiR, one block, 16 copies" --json $OUT/eval/3_ladir.json
for seed in 0 1 2; do
  S="$P --loop.steps 100 --data.task.seed $seed --loop.seed $seed"
  ladi train rl $S --model-dir $R/reasoner_16/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 \
    --out-dir $R/rl_16_$seed
  $many $latent --seed $seed --model-dir $R/rl_16_$seed/final --label "LaDiR, one block, 16 copies + LaDi-RL" --json $OUT/eval/4_rl_$seed.json
  ladi train grpo $S --model-dir $A/ar --policy.num-generations 32 --out-dir $R/grpo_$seed
  $many --seed $seed --sample.temperature 1.0 --model-dir $R/grpo_$seed/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo_$seed.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_copies_rl --over-seeds --against "AR SFT + token GRPO"
python recipes/gradient_noise_countdown3.py $R/from_ar/final
