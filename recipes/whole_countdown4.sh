#!/usr/bin/env bash
# Countdown-4 with the whole chain of thought as one block, from nothing: AR SFT, a VAE whose decoder starts without the context,
# stage 1 with sixteen noisy copies a context; then 100 batches of 24 puzzles x 32 texts, each used twice, of LaDi-RL from it
# and of token GRPO from AR SFT. Two hours on two cores; every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
P="--preset cd4_one_block"
R=runs/cd4_one_block
OUT=${OUT:-runs/results/cd4_whole}

ladi train sft $P
ladi train vae $P
ladi train reasoner $P

EVAL="ladi eval $P --num-questions 500 --num-samples 128 --ks 1 4 16 64 128"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
$EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/3_ladir.json
$EVAL --sample.num-steps 30 --latent-use-samples 4 --model-dir $R/reasoner/final --label "LaDiR, 30 denoising steps" \
  --json $OUT/eval/5_ladir_30.json

TWICE="$P --policy.num-iterations 2 --loop.steps 200"
ladi train rl $TWICE --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5
$EVAL $latent --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl.json
ladi train grpo $TWICE --policy.num-generations 32
$EVAL $token --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
# As many batches again, from there.
MORE="$TWICE --data.task.seed 1 --loop.seed 1"
ladi train rl $MORE --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --model-dir $R/rl/final \
  --out-dir $R/rl_more
$EVAL $latent --model-dir $R/rl_more/final --label "LaDiR + LaDi-RL, 200 batches" --json $OUT/eval/7_rl_more.json
ladi train grpo $MORE --policy.num-generations 32 --model-dir $R/grpo/final --out-dir $R/grpo_more
$EVAL $token --model-dir $R/grpo_more/final --label "AR SFT + token GRPO, 200 batches" --json $OUT/eval/6_grpo_more.json
# The first hundred batches with the flow-matching loss for a density.
ladi train rl $TWICE --policy.density flow_loss --policy.noise-level 0 --policy.num-latents 16 --policy.texts-per-latent 2 \
  --policy.replay-steps 5 --out-dir $R/flow
FLOW=runs/results/cd4_density/eval/4_flow.json
$EVAL $latent --model-dir $R/flow/final --label "LaDiR + LaDi-RL, flow loss" --json $FLOW
cp $FLOW $OUT/eval/8_flow.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd4_whole --against "AR SFT + token GRPO"

# Where each model fails: at a step, at what is left to reach, or at finishing.
python recipes/diagnose_countdown.py 4 "AR SFT=$R/sft/final" "LaDiR=$R/reasoner/final" "AR SFT + token GRPO=$R/grpo/final" \
  "LaDiR + LaDi-RL=$R/rl/final"
