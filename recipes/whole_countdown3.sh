#!/usr/bin/env bash
# Countdown-3 with the whole chain of thought as one block, whose VAE reads the question, so that its latents say which solution is
# written; all else is the preset's, and AR SFT is the bundled model.
# An hour and a half on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_whole}
P="--preset cd3_tiny"
VAE="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
EVAL="ladi eval $P --num-questions 500 --latent-use-samples 4 --num-samples 100"

ladi train vae $P --backbone-dir $A/ar --vae.block whole --vae.max-block-tokens 32 --out-dir $R/vae
ladi train reasoner $P --backbone-dir $A/ar $VAE --max-blocks 1 --out-dir $R/reasoner
$EVAL --model-dir $R/reasoner/final --label "LaDiR, one block" --json $OUT/eval/1_stage1.json
ladi train rollout $P $VAE --reasoner-dir $R/reasoner/final --out-dir $R/rollout
$EVAL --model-dir $R/rollout/final --label "the same with stage 2" --json $OUT/eval/2_stage2.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_whole
