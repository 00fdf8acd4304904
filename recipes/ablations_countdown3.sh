#!/usr/bin/env bash
# Ablations on Countdown-3: batches of 64 in place of the bundled models' 256 for equal examples, Muon in place of AdamW, and
# the chain of thought as one block. An hour and a quarter on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/w0
OUT=${OUT:-runs/results/cd3_ablations}
SMALL="--loop.optim.name adamw --loop.optim.lr 1e-3"

ladi train sft --preset cd3_tiny --out-dir $R/sft $SMALL --loop.steps 4000
ladi train vae --preset cd3_tiny --out-dir $R/vae --backbone-dir $R/sft/final --vae.block whole --vae.num-latents 4 \
  --vae.max-block-tokens 32 $SMALL --loop.steps 5000
ladi train reasoner --preset cd3_tiny --out-dir $R/reasoner --backbone-dir $R/sft/final --vae-dir $R/vae/final \
  --latents-path $R/latents.safetensors --max-blocks 1 $SMALL --loop.steps 10000

# The preset as it is: batches of 64, Muon.
ladi train sft --preset cd3_tiny
ladi train vae --preset cd3_tiny
ladi train reasoner --preset cd3_tiny

EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 20 --ks 1 2 5 10 20 --latent-use-samples 0"
$EVAL --model-dir assets/cd3_tiny/ar --sample.temperature 1.0 --label "AR SFT, 1,000 x 256" --json $OUT/eval/1_ar_256.json
$EVAL --model-dir $R/sft/final --sample.temperature 1.0 --label "AR SFT, 4,000 x 64" --json $OUT/eval/2_ar_64.json
$EVAL --model-dir assets/cd3_tiny/stage1 --label "LaDiR, a block per step, 3,000 x 256" --json $OUT/eval/3_step.json
$EVAL --model-dir $R/reasoner/final --label "LaDiR, one block, 10,000 x 64" --json $OUT/eval/4_whole.json
$EVAL --model-dir runs/cd3_tiny/sft/final --sample.temperature 1.0 --label "AR SFT, 3,000 x 64, Muon" --json $OUT/eval/5_ar_muon.json
$EVAL --model-dir runs/cd3_tiny/reasoner/final --label "LaDiR, a block per step, 8,000 x 64, Muon" --json $OUT/eval/6_step_muon.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_ablations
