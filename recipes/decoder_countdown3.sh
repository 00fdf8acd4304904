#!/usr/bin/env bash
# Ablation of the VAE's decoder on Countdown-3: frozen (the papers' setting for a pretrained model) against trained. The VAE reads
# blocks alone, as the papers' does; 1,000 steps of it and 1,500 of stage 1 each, on 100,000 puzzles, one seed.
# Twenty minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/results/cd3_decoder}
EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 20 --ks 1 5 20 --sample.num-steps 10 --latent-use-samples 4"
for decoder in frozen full; do
  R=runs/cd3_decoder_$decoder
  P="--preset cd3_tiny --backbone-dir assets/cd3_tiny/ar --data.num-train 100000"
  ladi train vae $P --vae.no-reads-context --beta-warmup-steps 0 --vae.decoder $decoder --loop.steps 1000 --out-dir $R/vae
  ladi train reasoner $P --vae-dir $R/vae/final --latents-path $R/latents.safetensors --loss.times-mean 0 \
    --loop.steps 1500 --out-dir $R/reasoner
  $EVAL --model-dir $R/reasoner/final --label "VAE decoder $decoder" --json $OUT/eval/$decoder.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_decoder
