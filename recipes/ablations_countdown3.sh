#!/usr/bin/env bash
# Ablations of the supervised stages on Countdown-3: AdamW in place of Muon, a VAE that reads blocks alone in place of
# one that reads the context, the chain of thought as one block, and stage 2 from nearer to noise. After
# recipes/countdown3.sh; two hours on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/w0
A=runs/cd3_alone
OUT=${OUT:-runs/results/cd3_ablations}
ADAMW="--loop.optim.name adamw --loop.optim.lr 1e-3"
ALONE="--vae.no-reads-context --beta-warmup-steps 0"

ladi train sft --preset cd3_tiny --out-dir $R/sft $ADAMW --loop.steps 4000
ladi train vae --preset cd3_tiny $ALONE --loop.steps 3000 --out-dir $A/vae
ladi train reasoner --preset cd3_tiny --vae-dir $A/vae/final --latents-path $A/latents.safetensors --loss.times-mean 0 \
  --out-dir $A/reasoner
ladi train vae --preset cd3_tiny --out-dir $R/vae --backbone-dir $R/sft/final --vae.block whole --vae.num-latents 4 \
  --vae.max-block-tokens 32 $ALONE $ADAMW --loop.steps 5000
ladi train reasoner --preset cd3_tiny --out-dir $R/reasoner --backbone-dir $R/sft/final --vae-dir $R/vae/final \
  --latents-path $R/latents.safetensors --max-blocks 1 --loss.times-mean 0 $ADAMW --loop.steps 10000
# Stage 2 whose self-made blocks start nearer to noise.
ladi train rollout --preset cd3_tiny --rollout.start-time 0.2 0.8 --loop.optim.lr 1e-3 --out-dir runs/cd3_tiny/rollout_wide

EVAL="ladi eval --preset cd3_tiny --num-questions 200 --num-samples 20 --ks 1 2 5 10 20"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--latent-use-samples 4"
$EVAL $token --model-dir $R/sft/final --label "AR SFT, AdamW, 4,000 x 64" --json $OUT/eval/1_ar_adamw.json
$EVAL $token --model-dir assets/cd3_tiny/ar --label "AR SFT, Muon, 3,000 x 64" --json $OUT/eval/2_ar_muon.json
$EVAL $latent --model-dir $R/reasoner/final --label "LaDiR, one block, alone, AdamW, 10,000 x 64" --json $OUT/eval/3_whole.json
$EVAL $latent --model-dir $A/reasoner/final --label "LaDiR, a block per step, alone, Muon, 8,000 x 64" --json $OUT/eval/4_alone.json
$EVAL $latent --model-dir assets/cd3_tiny/stage1 --label "LaDiR, a block per step, context, Muon, 8,000 x 64" --json $OUT/eval/5_context.json
$EVAL $latent --model-dir assets/cd3_tiny/stage2 --label "the same with stage 2" --json $OUT/eval/6_stage2.json
$EVAL $latent --model-dir runs/cd3_tiny/rollout_wide/final --label "the same with stage 2, starts to 0.8" --json $OUT/eval/7_stage2_wide.json
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_ablations
python recipes/flow_gap_countdown3.py "blocks alone=$A/reasoner/final" "context=runs/cd3_tiny/reasoner/final"
