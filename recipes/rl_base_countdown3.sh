#!/usr/bin/env bash
# LaDi-RL and token GRPO on Countdown-3 from other bases than the bundled one: weights, noise, puzzles, rollouts and evaluation
# are those of seeds 1 and 2 (the bundled VAE is shared); the bases are those of recipes/seeds_countdown3.sh. 100 updates of
# 24 puzzles x 32 texts each, and 100 batches of them used twice. Two hours on two cores; every command resumes if it is
# interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
A=assets/cd3_tiny
VAE="--vae-dir $A/vae --latents-path runs/cd3_tiny_latents.safetensors"

for s in ${SEEDS:-1 2}; do
  R=runs/cd3_tiny_seed$s
  OUT=runs/results/cd3_rl_base_$s
  P="--preset cd3_tiny --loop.seed $s"
  ladi train sft $P --backbone.seed $s --out-dir $R/sft
  ladi train reasoner $P $VAE --backbone-dir $R/sft/final --out-dir $R/reasoner
  RL="$P --data.task.seed $s"
  latents="--model-dir $R/reasoner/final --policy.num-latents 16 --policy.texts-per-latent 2 --policy.replay-steps 5"
  texts="--model-dir $R/sft/final --policy.num-generations 32"
  once="--loop.steps 100"
  twice="--policy.num-iterations 2 --loop.steps 200"
  ladi train rl $RL $latents $once --out-dir $R/rl_own_base
  ladi train grpo $RL $texts $once --out-dir $R/grpo_own_base
  ladi train rl $RL $latents $twice --out-dir $R/rl_own_base_twice
  ladi train grpo $RL $texts $twice --out-dir $R/grpo_own_base_twice

  EVAL="ladi eval --preset cd3_tiny --num-questions 500 --num-samples 128 --ks 1 4 16 64 128 --seed $s"
  token="--sample.temperature 1.0 --latent-use-samples 0"
  latent="--sample.num-steps 10 --latent-use-samples 4"
  $EVAL $token --model-dir $R/sft/final --label "AR SFT" --json $OUT/eval/1_ar.json
  $EVAL $token --model-dir $R/grpo_own_base/final --label "AR SFT + token GRPO" --json $OUT/eval/2_grpo.json
  $EVAL $token --model-dir $R/grpo_own_base_twice/final --label "AR SFT + token GRPO, twice" --json $OUT/eval/5_grpo_twice.json
  $EVAL $latent --model-dir $R/reasoner/final --label "LaDiR" --json $OUT/eval/3_ladir.json
  $EVAL $latent --model-dir $R/rl_own_base/final --label "LaDiR + LaDi-RL" --json $OUT/eval/4_rl.json
  $EVAL $latent --model-dir $R/rl_own_base_twice/final --label "LaDiR + LaDi-RL, twice" --json $OUT/eval/6_rl_twice.json
  ladi report $OUT --out $OUT/table.html --markdown docs/results.md#cd3_rl_base_$s \
    --against "AR SFT + token GRPO, twice"
done
