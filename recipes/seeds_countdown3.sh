#!/usr/bin/env bash
# The supervised rows of Countdown-3 with two more seeds (of weights, noise and evaluation; the bundled VAE and its latents
# are shared), and AR SFT on as many training examples as the reasoner has seen.
# Two hours on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3_seeds}
EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 100"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--latent-use-samples 4"

measured() {  # seed, AR SFT, stage 1, stage 2
  $EVAL $token --seed $1 --model-dir $2 --label "AR SFT" --json $OUT/eval/1_ar_$1.json
  $EVAL $latent --seed $1 --model-dir $3 --label "LaDiR" --json $OUT/eval/3_stage1_$1.json
  $EVAL $latent --seed $1 --model-dir $4 --label "LaDiR with stage 2" --json $OUT/eval/4_stage2_$1.json
}
measured 0 $A/ar $A/stage1 $A/stage2
VAE="--vae-dir $A/vae --latents-path runs/cd3_tiny_latents.safetensors"
for s in 1 2; do
  R=runs/cd3_tiny_seed$s
  P="--preset cd3_tiny --loop.seed $s"
  ladi train sft $P --backbone.seed $s --out-dir $R/sft
  ladi train reasoner $P $VAE --backbone-dir $R/sft/final --out-dir $R/reasoner
  ladi train rollout $P $VAE --reasoner-dir $R/reasoner/final --out-dir $R/rollout
  measured $s $R/sft/final $R/reasoner/final $R/rollout/final
done
# 8,800 x 64 = 563,000 examples: those of stage 1 (8,000) and of stage 2 (800).
ladi train sft --preset cd3_tiny --loop.steps 8800 --out-dir runs/cd3_tiny_long/sft
$EVAL $token --model-dir runs/cd3_tiny_long/sft/final --label "AR SFT, 8,800 steps" --json $OUT/eval/2_ar_long.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_seeds --over-seeds
