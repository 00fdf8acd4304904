#!/usr/bin/env bash
# How many noisy copies of a block should share one context in stage 1: the preset's 4, or 16? On the latents of one block, after
# recipes/whole_countdown3.sh, start_countdown3.sh (whose run from AR SFT has the 4) and rl_whole_countdown3.sh: 1,500 steps of
# both, then the whole of the 16, with stage 2, and LaDi-RL from it. Two hours on two cores; every command resumes.
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
ladi report $RESULTS/cd3_draws_long --out $RESULTS/cd3_draws_long/table.html --markdown docs/results.md#cd3_draws_long

many="$EVAL --num-samples 128 --ks 1 4 16 64 128 --sample.num-steps 10"
ladi train rl $P --loop.steps 100 --model-dir $R/reasoner_16/final --policy.num-latents 16 --policy.texts-per-latent 2 \
  --policy.replay-steps 5 --out-dir $R/rl_16_0
$many --model-dir $R/reasoner_16/final --label "LaDiR, one block, 16 copies" --json $RESULTS/cd3_copies_rl/eval/3_ladir.json
$many --seed 0 --model-dir $R/rl_16_0/final --label "LaDiR, one block, 16 copies + LaDi-RL" --json $RESULTS/cd3_copies_rl/eval/4_rl_0.json
ladi report $RESULTS/cd3_whole_rl $RESULTS/cd3_copies_rl --out $RESULTS/cd3_copies_rl/table.html \
  --markdown docs/results.md#cd3_whole_rl --against "AR SFT + token GRPO"
python recipes/gradient_noise_countdown3.py $R/from_ar/final
