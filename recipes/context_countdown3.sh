#!/usr/bin/env bash
# Countdown-3 with latents that carry a choice, not a text: the VAE reads the question and the earlier blocks, as in the
# preset cd3_tiny, beside the papers' VAE of blocks alone. Two hours on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_tiny
A=runs/cd3_alone
OUT=${OUT:-runs/results/cd3_context}

ladi train sft --preset cd3_tiny
ladi train vae --preset cd3_tiny
ladi train reasoner --preset cd3_tiny
ladi train rl --preset cd3_tiny --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --loop.steps 100
ladi train grpo --preset cd3_tiny --policy.num-generations 32 --loop.steps 100
# More updates of both, from where the first hundred ended.
ladi train rl --preset cd3_tiny --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5 --loop.steps 150 \
  --model-dir $R/rl/final --out-dir $R/rl_more --loop.seed 1
ladi train grpo --preset cd3_tiny --policy.num-generations 32 --loop.steps 150 \
  --model-dir $R/grpo/final --out-dir $R/grpo_more --loop.seed 1
ladi train vae --preset cd3_tiny --vae.no-reads-context --beta-warmup-steps 0 --loop.steps 3000 --out-dir $A/vae
ladi train reasoner --preset cd3_tiny --vae-dir $A/vae/final --latents-path $A/latents.safetensors --loss.times-mean 0 \
  --out-dir $A/reasoner

EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 100"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--sample.num-steps 10 --latent-use-samples 4"
$EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
$EVAL $token --model-dir $R/grpo/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
$EVAL $latent --model-dir $A/reasoner/final --label "LaDiR, blocks alone" --json $OUT/eval/3_alone.json
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/4_ladir.json
$EVAL $latent --model-dir $R/rl/final --label "LaDiR + LaDi-RL" --json $OUT/eval/6_rl.json
$EVAL $latent --model-dir $R/rl_more/final --label "LaDiR + LaDi-RL, 250 updates" --json $OUT/eval/7_rl_more.json
$EVAL $token --model-dir $R/grpo_more/final --label "AR SFT + token GRPO, 250 updates" --json $OUT/eval/8_grpo_more.json
ladi report $OUT --out $OUT/report.html --title "Countdown-3, latents of a choice" --markdown docs/results.md#cd3_context
python recipes/flow_gap_countdown3.py "blocks alone=$A/reasoner/final" "context=$R/reasoner/final"
