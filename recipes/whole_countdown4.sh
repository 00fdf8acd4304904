#!/usr/bin/env bash
# Countdown-4 with the whole chain of thought as one block, whose VAE reads the question, and sixteen noisy copies a context in
# stage 1; the VAE has twice the steps of the preset, all else is as there. Then reinforcement learning beside token GRPO, and AR SFT on as many examples.
# Two and a half hours on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd4_tiny"
R=runs/cd4_whole
OUT=${OUT:-runs/results/cd4_whole}
EVAL="ladi eval $P --num-questions 500 --num-samples 100 --ks 1 4 16 100"
latent="--sample.num-steps 10 --latent-use-samples 4"
token="--sample.temperature 1.0 --latent-use-samples 0"

ladi train sft $P --out-dir $R/sft
$EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
ladi train vae $P --backbone-dir $R/sft/final --vae.block whole --vae.max-block-tokens 48 --loop.steps 3000 \
  --out-dir $R/vae
ladi train reasoner $P --backbone-dir $R/sft/final --vae-dir $R/vae/final --latents-path $R/latents.safetensors --max-blocks 1 \
  --loss.noise-draws 16 --out-dir $R/reasoner
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR, one block, 16 copies" --json $OUT/eval/3_ladir.json

ladi train rl $P --loop.steps 100 --model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 \
  --policy.replay-steps 5 --out-dir $R/rl
$EVAL $latent --model-dir $R/rl/final --label "LaDiR, one block, 16 copies + LaDi-RL" --json $OUT/eval/5_rl.json
ladi train grpo $P --loop.steps 100 --model-dir $R/sft/final --policy.num-generations 32 --out-dir $R/grpo
$EVAL $token --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/4_grpo.json

ladi train sft $P --loop.steps 8000 --out-dir $R/sft_long
$EVAL $token --model-dir $R/sft_long/final --label "AR SFT, 8,000 steps" --json $OUT/eval/2_ar_long.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4_whole --against "AR SFT + token GRPO"
