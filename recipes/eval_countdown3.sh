#!/usr/bin/env bash
# The rows of docs/results.md for Countdown-3, a block per step: evaluations only, of the bundled supervised models and of the
# reinforced ones that recipes/countdown3.sh trains from them.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
R=runs/cd3_tiny
OUT=${OUT:-runs/results/cd3}
EVAL="ladi eval --preset cd3_tiny"
main="--num-questions 500 --num-samples 100"
small="--num-questions 200 --num-samples 20 --ks 1 2 5 10 20 --latent-use-samples 0"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--latent-use-samples 4"

# Main rows: supervised and reinforced, in token and in latent space.
$EVAL $main $token --model-dir $A/ar --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $main $token --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
$EVAL $main $token --model-dir $R/grpo_more/final --label "AR SFT + token GRPO, 250 updates" --json $OUT/eval/2_grpo_long.json
$EVAL $main $latent --model-dir $A/stage1 --label "LaDiR" --json $OUT/eval/3_stage1.json
$EVAL $main $latent --model-dir $A/stage2 --label "LaDiR with stage 2" --json $OUT/eval/4_stage2.json
$EVAL $main $latent --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/5_rl.json
$EVAL $main $latent --model-dir $R/rl_more/final --label "LaDiR + LaDi-RL, 250 updates" --json $OUT/eval/5_rl_long.json
ladi report $OUT --out $OUT/report.html --title "Countdown-3" --markdown docs/results.md#cd3

# Variants, on fewer puzzles: other readers, other sharpness, targets never seen in training.
V=${OUT}_variants
$EVAL $small --model-dir $A/ar --sample.temperature 1.0 --label "AR SFT" --json $V/eval/ar_t1.json
$EVAL $small --model-dir $A/ar --sample.temperature 0.7 --label "AR SFT, T = 0.7" --json $V/eval/ar_t07.json
$EVAL $small --model-dir $A/ar --sample.temperature 0.3 --label "AR SFT, T = 0.3" --json $V/eval/ar_t03.json
$EVAL $small --model-dir $A/stage1 --label "LaDiR" --json $V/eval/ladir.json
$EVAL $small --model-dir $A/stage1 --sample.temperature 1.0 --label "LaDiR, text T = 1" --json $V/eval/ladir_t1.json
$EVAL $small --model-dir $A/stage1 --readout vae --label "LaDiR, VAE readout" --json $V/eval/ladir_vae.json
$EVAL $small --model-dir $A/stage2 --label "LaDiR with stage 2" --json $V/eval/stage2.json
$EVAL $small --model-dir $A/stage2 --sample.temperature 1.0 --label "LaDiR with stage 2, text T = 1" --json $V/eval/stage2_t1.json
$EVAL $small --model-dir $A/stage2 --readout vae --label "LaDiR with stage 2, VAE readout" --json $V/eval/stage2_vae.json
$EVAL $small --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $V/eval/rl.json
$EVAL $small --model-dir $R/rl/final --readout vae --label "LaDiR + LaDi-RL, VAE readout" --json $V/eval/rl_vae.json
$EVAL $small --split test_unseen --model-dir $A/ar --sample.temperature 1.0 --label "AR SFT" --json $V/eval/unseen_ar.json
$EVAL $small --split test_unseen --model-dir $R/grpo/final --sample.temperature 1.0 --label "AR SFT + token GRPO" --json $V/eval/unseen_grpo.json
$EVAL $small --split test_unseen --model-dir $A/stage1 --label "LaDiR" --json $V/eval/unseen_ladir.json
$EVAL $small --split test_unseen --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $V/eval/unseen_rl.json
ladi report $V --out $V/report.html --title "Countdown-3, variants" --markdown docs/results.md#cd3_variants

# Sweeps of the sampler: denoising steps, repulsion, classifier-free guidance, initial noise.
S=${OUT}_sweeps
for steps in 2 5 10 30 50; do
  $EVAL $small --model-dir $A/stage1 --sample.num-steps $steps --label "LaDiR" --json $S/eval/steps_$(printf %02d $steps).json
done
for gamma in 0.3 0.8 3.0 10.0; do
  $EVAL $small --model-dir $A/stage1 --sample.guidance $gamma --label "LaDiR" --json $S/eval/guidance_$gamma.json
done
for scale in 1.5 2 3 5; do
  $EVAL $small --model-dir $A/stage1 --sample.guidance-scale $scale --label "LaDiR" --json $S/eval/scale_$scale.json
done
for noise in 0.5 0.7 0.85 1.5 2.0; do
  $EVAL $small --model-dir $A/stage1 --sample.initial-noise $noise --label "LaDiR" --json $S/eval/noise_$noise.json
done
ladi report $S --out $S/report.html --title "Countdown-3, sampler" --markdown docs/results.md#cd3_sweeps

# Where each model fails: at the first step, at what is left to reach, or at finishing.
python recipes/diagnose_countdown.py 3 "AR SFT=$A/ar" "AR SFT + token GRPO=$R/grpo/final" "LaDiR=$A/stage1" \
  "LaDiR with stage 2=$A/stage2" "LaDiR + LaDi-RL=$R/rl/final" "AR SFT + token GRPO, 250 updates=$R/grpo_more/final" \
  "LaDiR + LaDi-RL, 250 updates=$R/rl_more/final"
