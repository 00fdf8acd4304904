#!/usr/bin/env bash
# Countdown-3 where worked solutions are few: 10,000 puzzles for every supervised stage in place of 300,000, read many times, until
# they are known by heart. Then 100 updates of either reinforcement learning, on puzzles without worked solutions: three seeds from
# the pair of bases that stopped early, one from the pair that did not. Two hours on two cores; every command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
R=runs/cd3_few
OUT=${OUT:-runs/results/cd3_few}
P="--preset cd3_tiny --data.num-train 10000"
LATENTS="--vae-dir $R/vae/final --latents-path $R/latents.safetensors"
EVAL="ladi eval --preset cd3_tiny --num-questions 500"
token="--sample.temperature 1.0 --latent-use-samples 0"
latent="--latent-use-samples 4"

for n in 1000 3000; do
  ladi train sft $P --loop.steps $n --out-dir $R/sft_$n
  $EVAL $token --num-samples 100 --model-dir $R/sft_$n/final --label "AR SFT, $n steps" --json $OUT/eval/1_ar_$n.json
done
ladi train vae $P --backbone-dir $R/sft_1000/final --vae.decoder frozen --loop.steps 1200 --out-dir $R/vae
for n in 2000 8000; do
  ladi train reasoner $P --backbone-dir $R/sft_1000/final $LATENTS --loop.steps $n --out-dir $R/reasoner_$n
  $EVAL $latent --num-samples 100 --model-dir $R/reasoner_$n/final --label "LaDiR, $n steps" --json $OUT/eval/2_stage1_$n.json
done
ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_few

RL=${OUT}_rl
EVAL="$EVAL --num-samples 128 --ks 1 4 16 64 128"
latent="$latent --sample.num-steps 10"
reinforced() {  # seed, steps of AR SFT, steps of stage 1, label
  Q="--preset cd3_tiny --data.task.seed $(($1 + 1)) --loop.seed $1 --loop.steps 100"
  ladi train grpo $Q --model-dir $R/sft_$2/final --policy.num-generations 32 --out-dir $R/grpo_$2_$1
  ladi train rl $Q --model-dir $R/reasoner_$3/final --policy.num-latents 16 --policy.texts-per-latent 2 \
    --policy.replay-steps 5 --out-dir $R/rl_$3_$1
  $EVAL $token --seed $1 --model-dir $R/grpo_$2_$1/final --label "AR SFT$4 + token GRPO" --json $RL/eval/2_grpo_$2_$1.json
  $EVAL $latent --seed $1 --model-dir $R/rl_$3_$1/final --label "LaDiR$4 + LaDi-RL" --json $RL/eval/4_rl_$3_$1.json
}
base() {  # steps of AR SFT, steps of stage 1, label
  $EVAL $token --model-dir $R/sft_$1/final --label "AR SFT$3" --json $RL/eval/1_ar_$1.json
  $EVAL $latent --model-dir $R/reasoner_$2/final --label "LaDiR$3" --json $RL/eval/3_ladir_$2.json
}
base 1000 2000 ""
for s in 0 1 2; do reinforced $s 1000 2000 ""; done
base 3000 8000 ", by heart"
reinforced 0 3000 8000 ", by heart"
ladi report $RL --out $RL/table.html --markdown docs/results.md#cd3_few_rl --over-seeds --against "AR SFT + token GRPO"
