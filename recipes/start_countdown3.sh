#!/usr/bin/env bash
# Does a reasoner plan as well as the language model that it starts from? Stage 1 for 1,500 steps on the latents of one block
# (after recipes/whole_countdown3.sh), from AR SFT and from AR SFT + token GRPO. Twenty minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_whole
OUT=${OUT:-runs/results/cd3_start}
VAE="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
for start in ar grpo; do
  ladi train reasoner --preset cd3_tiny --backbone-dir $A/$start $VAE --max-blocks 1 --loop.steps 1500 --out-dir $R/from_$start
  ladi eval --preset cd3_tiny --num-questions 500 --num-samples 20 --ks 1 5 20 --sample.num-steps 10 --latent-use-samples 4 \
    --model-dir $R/from_$start/final --label "LaDiR from $start" --json $OUT/eval/$start.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_start
