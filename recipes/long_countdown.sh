#!/usr/bin/env bash
# Countdown-3 and Countdown-4 with the chain of thought as one block, trained on ten times as many examples as the presets'
# runs, and AR SFT on as many. Ten minutes on one H100 if the four lines of commands run side by side; too long for a CPU.
# Needs the VAE of recipes/whole_countdown3.sh. Every command resumes if it is interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS3=${STEPS3:-8000} STEPS4=${STEPS4:-6000} # of stage 1; AR SFT adds those of the model that stage 1 starts from
OUT=${OUT:-runs/results/long}
B="--loop.batch-size 512 --loop.micro-batch-size 512 --loop.precision tf32 --data.num-workers 3"
P3="--preset cd3_tiny $B"
P4="--preset cd4_tiny $B --data.num-train 300000"
A=assets/cd3_tiny
W=runs/cd3_whole
R3=runs/cd3_long
R4=runs/cd4_long

ladi train sft $P3 --loop.steps $((STEPS3 + 375)) --out-dir $R3/sft
ladi train reasoner $P3 --loop.steps $STEPS3 --backbone-dir $A/ar --vae-dir $W/vae/final --latents-path $R3/latents.safetensors --max-blocks 1 --out-dir $R3/reasoner

ladi train sft $P4 --loop.steps 2000 --out-dir $R4/sft
ladi train vae $P4 --loop.steps 2000 --backbone-dir $R4/sft/final --vae.block whole --vae.num-latents 4 --vae.max-block-tokens 48 --out-dir $R4/vae
ladi train reasoner $P4 --loop.steps $STEPS4 --backbone-dir $R4/sft/final --vae-dir $R4/vae/final --latents-path $R4/latents.safetensors --max-blocks 1 --out-dir $R4/reasoner
ladi train sft $P4 --loop.steps $((STEPS4 + 2000)) --out-dir $R4/sft_long
