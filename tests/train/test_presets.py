from dataclasses import asdict
from pathlib import Path

import pytest

from ladi.inference.text import alphabet, blocks_of, sft_target
from ladi.models.backbone import Backbone
from ladi.rundir import differences, to_json
from ladi.tasks.code import Code
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.math import Math
from ladi.train.presets import PRESETS

FIXTURES = Path(__file__).parents[1] / "fixtures"
LOCAL = {
    Gsm8k: (Gsm8k(path=str(FIXTURES)), "train"),
    Jsonl: (Gsm8k(path=str(FIXTURES)), "train"),
    Math: (Math(test_path=str(FIXTURES / "math500_test.jsonl")), "test"),
    Code: (Code(path=str(FIXTURES / "mbpp.jsonl")), "train"),
}
"""Some rows of each task's data; of your own data GSM8K stands in."""


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_its_stages_read_what_the_earlier_ones_write(name):
    p = PRESETS[name](Path("root"), 3)
    assert p.vae.backbone_dir == p.reasoner.backbone_dir == p.sft.out_dir / "final"
    assert p.reasoner.vae_dir == p.rollout.vae_dir == p.vae.out_dir / "final"
    assert p.rollout.reasoner_dir == p.reasoner.out_dir / "final"
    assert p.rollout.latents_path == p.reasoner.latents_path
    assert p.rl.model_dir == p.reasoner.out_dir / "final"
    assert p.grpo.model_dir == p.sft.out_dir / "final"
    assert p.dlr.model_dir == p.dlr_warmup.out_dir / "final"
    assert p.dlr_warmup.main in (str(p.sft.out_dir / "final"), p.sft.backbone.name_or_path)
    assert p.eval.max_text_tokens >= p.grpo.policy.max_completion_length
    assert p.grpo.policy.num_generations == p.rl.policy.num_latents * p.rl.policy.texts_per_latent
    assert {stage.loop.seed for stage in (p.sft, p.vae, p.reasoner, p.rollout, p.rl, p.grpo, p.dlr)} == {3}


@pytest.mark.parametrize(("name", "most"), [("cd3_tiny", 2e6), ("cd4_tiny", 2e6), ("cd4_small", 10e6)])
def test_backbones_keep_to_their_size(name, most):
    p = PRESETS[name](Path("root"))
    backbone = Backbone.from_config(p.sft.backbone, alphabet(p.sft.data.task))
    assert sum(parameter.numel() for parameter in backbone.parameters()) <= most


@pytest.mark.parametrize(
    "name",
    [
        "cd3_tiny",
        "cd3_one_block",
        "cd4_tiny",
        "cd4_one_block",
        "cd4_small",
        "arithmetic_tiny",
        "dlr_cd3",
        "dlr_arithmetic",
    ],
)
def test_texts_fit_the_blocks_and_answers_of_the_preset(name):
    p = PRESETS[name](Path("root"))
    task = p.sft.data.task
    for i in range(500):
        problem = task.problem("train", i)
        blocks = blocks_of(problem, p.vae.vae.block, task.step_separator)
        assert len(blocks) <= p.reasoner.max_blocks
        assert max(len(block.text) for block in blocks) < p.vae.vae.max_block_tokens
        assert len(problem.answer) < p.reasoner.max_answer_tokens
        assert len(sft_target(problem, task)) < p.grpo.policy.max_completion_length
        assert len(sft_target(problem, task)) < p.dlr_warmup.assistant.max_answer_tokens


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name]().sft.backbone.name_or_path])
def test_thought_and_answer_fit_the_texts_of_presets_for_pretrained_models(name):
    p = PRESETS[name](Path("root"))
    task, split = LOCAL[type(p.sft.data.task)]
    longest = max(len(sft_target(problem, task)) for problem in task.problems(split)) / 3 + 1  # tokens, with <eos>
    assert longest < p.grpo.policy.max_completion_length
    assert longest < p.dlr_warmup.assistant.max_answer_tokens


@pytest.mark.parametrize(("name", "tokens"), [("cd3_tiny", 32), ("dlr_arithmetic", 64), ("jsonl_small", 256)])
def test_texts_of_small_presets_are_as_long_as_answers_or_four_times_as_long(name, tokens):
    p = PRESETS[name](Path("root"))
    assert p.grpo.policy.max_completion_length == p.dlr_warmup.assistant.max_answer_tokens == tokens


def test_the_paper_preset_of_dlr_holds_its_table_2():
    p = PRESETS["dlr_paper"](Path("root"))
    policy, shape, loop = p.dlr.policy, p.dlr_warmup.assistant, p.dlr.loop
    assert (shape.latent_width, shape.num_latents) == (512, 32)
    assert (policy.num_generations, policy.beta, policy.gamma) == (64, 0.01, 0.1)
    assert (loop.optim.lr, p.dlr.projection_lr) == (3e-5, 1e-4)
    assert loop.batch_size == 8 * 4
    assert loop.steps * loop.batch_size == pytest.approx(3 * 7473, abs=loop.batch_size)
    assert policy.num_decoded / policy.num_generations == pytest.approx(0.18, abs=0.01)


def test_the_code_preset_of_ladi_rl_holds_the_paper_s_settings():
    p = PRESETS["ladi_rl_code_qwen3_8b"](Path("root"))
    assert (p.vae.vae.num_latents, p.vae.vae.block, p.reasoner.max_blocks) == (64, "whole", 1)
    assert (p.rl.policy.num_latents, p.rl.policy.texts_per_latent) == (16, 5)
    assert (p.rl.policy.num_steps, p.eval.sample.num_steps) == (10, 30)
    assert (p.rl.policy.alpha, p.rl.policy.guidance / p.rl.policy.num_steps) == (0.9, 0.8)
    assert p.eval.model_dir == p.rl.out_dir / "final"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_writes_to_a_folder_of_its_name(name):
    p = PRESETS[name]()
    folders = [stage.out_dir for stage in (p.sft, p.vae, p.reasoner, p.rollout, p.rl, p.grpo, p.dlr_warmup, p.dlr)]
    assert {folder.parent for folder in folders} == {Path("runs") / name}
    assert len(set(folders)) == len(folders)


def test_both_names_of_the_paper_s_dlr_preset_mean_the_same():
    assert PRESETS["dlr_gsm8k_llama2_7b"](Path("root"), 3) == PRESETS["dlr_paper"](Path("root"), 3)


def epochs(stage) -> float:
    return stage.loop.steps * stage.loop.batch_size / (stage.data.num_train or 1000)  # 0: all of about 1,000


def test_own_data_is_learned_with_qwen3_as_gsm8k_is_but_for_steps_and_lengths_of_answers():
    ours, gsm8k = (PRESETS[name](Path("root")) for name in ("jsonl_qwen3_600m", "ladir_gsm8k_qwen3_600m"))
    changed = {line.split(" (")[0] for line in differences(to_json(asdict(gsm8k)), to_json(asdict(ours)))}
    free = ("steps", "warmup_steps", "num_train", "max_answer_tokens")
    assert {name for name in changed if ".task." not in name and name.split(".")[-1] not in free} == set()
    assert not any(name.startswith(("rl.loop", "grpo.loop", "dlr.loop", "dlr_warmup.loop")) for name in changed)
    assert ours.sft.data.task.name == "jsonl"
    for stage in ("sft", "reasoner", "rollout"):
        assert epochs(getattr(ours, stage)) == pytest.approx(epochs(getattr(gsm8k, stage)), rel=0.15)
    assert ours.vae.loop.steps < gsm8k.vae.loop.steps
