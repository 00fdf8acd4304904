#!/usr/bin/env bash
# The rows of docs/results.md for Countdown-3: evaluations only, of finished runs or of the bundled models.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
OUT=${OUT:-runs/results/cd3}
EVAL="ladi eval --preset cd3_tiny --latent-use-samples 0"
main="--num-questions 500 --num-samples 100"
small="--num-questions 200 --num-samples 20 --ks 1 2 5 10 20"

# Main rows: both test sets.
for split in test test_unseen; do
  $EVAL $main --split $split --model-dir $A/ar --sample.temperature 1.0 --label "AR SFT" --json $OUT/eval/ar_$split.json
  $EVAL $main --split $split --model-dir $A/stage2 --latent-use-samples 4 --label "LaDiR" --json $OUT/eval/stage2_$split.json
done
$EVAL $main --model-dir $A/stage1 --latent-use-samples 4 --label "LaDiR without stage 2" --json $OUT/eval/stage1_test.json
$EVAL $main --model-dir $A/stage2 --readout vae --label "LaDiR, VAE readout" --json $OUT/eval/stage2_vae_test.json
$EVAL --model-dir $A/ar --sample.temperature 0.0 --num-questions 500 --num-samples 1 --ks 1 --label "AR SFT greedy" --json $OUT/eval/ar_greedy_test.json

# Sweeps on the stage-2 model: denoising steps, repulsion, initial noise.
for steps in 2 5 10 30 50; do
  $EVAL $small --model-dir $A/stage2 --sample.num-steps $steps --label "LaDiR sweep" --json $OUT/eval/steps_$steps.json
done
for gamma in 0.3 0.8 3.0 10.0; do
  $EVAL $small --model-dir $A/stage2 --sample.guidance $gamma --label "LaDiR sweep" --json $OUT/eval/guidance_$gamma.json
done
for noise in 1.5 2.0; do
  $EVAL $small --model-dir $A/stage2 --sample.initial-noise $noise --label "LaDiR sweep" --json $OUT/eval/noise_$noise.json
done
ladi report $OUT --out $OUT/report.html --title "Countdown-3" --markdown docs/results.md#cd3
