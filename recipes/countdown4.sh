#!/usr/bin/env bash
# Countdown-4 from nothing to measured numbers, on two cores: an hour and a half of training, ten minutes of evaluation.
# Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd4_tiny"
R=runs/cd4_tiny
OUT=${OUT:-runs/results/cd4}

ladi train sft $P
ladi train vae $P
ladi train reasoner $P
ladi train rollout $P

EVAL="ladi eval $P --num-questions 200 --num-samples 100"
$EVAL --latent-use-samples 0 --model-dir $R/sft/final --sample.temperature 1.0 --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL --latent-use-samples 4 --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/2_ladir.json
$EVAL --latent-use-samples 4 --model-dir $R/rollout/final --label "LaDiR with stage 2" --json $OUT/eval/3_stage2.json
ladi report $OUT $R/sft $R/vae $R/reasoner --out $OUT/report.html --title "Countdown-4"
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4
