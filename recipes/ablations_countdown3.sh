#!/usr/bin/env bash
# Ablations on Countdown-3: batches of 64 in place of 256 for equal examples, and the chain of thought as one block.
# Forty minutes on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/w0
OUT=${OUT:-runs/results/cd3_ablations}
SMALL="--loop.batch-size 64 --loop.micro-batch-size 64 --loop.optim.lr 1e-3"

ladi train sft --preset cd3_tiny --out-dir $R/sft $SMALL --loop.steps 4000
ladi train vae --preset cd3_tiny --out-dir $R/vae --backbone-dir $R/sft/final --vae.block whole --vae.num-latents 4 \
  --vae.max-block-tokens 32 $SMALL --loop.steps 5000
ladi train reasoner --preset cd3_tiny --out-dir $R/reasoner --backbone-dir $R/sft/final --vae-dir $R/vae/final \
  --latents-path $R/latents.safetensors --max-blocks 1 $SMALL --loop.steps 10000

EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 20 --ks 1 2 5 10 20 --latent-use-samples 0"
$EVAL --model-dir assets/cd3_tiny/ar --sample.temperature 1.0 --label "AR SFT, 1,000 x 256" --json $OUT/eval/1_ar_256.json
$EVAL --model-dir $R/sft/final --sample.temperature 1.0 --label "AR SFT, 4,000 x 64" --json $OUT/eval/2_ar_64.json
$EVAL --model-dir assets/cd3_tiny/stage1 --label "LaDiR, a block per step, 3,000 x 256" --json $OUT/eval/3_step.json
$EVAL --model-dir $R/reasoner/final --label "LaDiR, one block, 10,000 x 64" --json $OUT/eval/4_whole.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_ablations
