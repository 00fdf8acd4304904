import pytest
import torch

from ladi.flow.guidance import repulsion_push
from ladi.models.generation import SampleConfig, generate_latents
from ladi.models.reasoner import Context, LatentReasoner, ReasonerConfig
from tests.conftest import stop_every_third

QUESTIONS = ["19,35,44:60", "1,2,3:6", "50,7:43"]
ANSWERS = ["44-19=25,35+25=60", "1+2=3,3+3=6", "50-7=43"]
BLOCK_VALID = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)


@pytest.fixture
def clean(reasoner):
    blocks = torch.randn(3, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    return blocks, read(reasoner, blocks)


def read(reasoner, blocks, questions=QUESTIONS, answers=ANSWERS, **kwargs):
    return reasoner.read(
        reasoner.backbone.tokenize(questions, opening=True),
        blocks,
        BLOCK_VALID,
        reasoner.backbone.tokenize(answers, add_eos=True),
        **kwargs,
    )


def noisy(copies, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, copies, 2, 4, generator=generator), torch.rand(3, copies, generator=generator)


@torch.no_grad()
def test_packed_copies_equal_separate_forwards(reasoner, clean):
    context = clean[1].blocks.repeat(4)
    x_t, t = noisy(12)
    packed = reasoner.velocity(context, x_t, t)
    for r in range(12):
        one = Context(context.past, context.visible[:, r : r + 1], context.position[:, r : r + 1])
        alone = reasoner.velocity(one, x_t[:, r : r + 1], t[:, r : r + 1])
        torch.testing.assert_close(packed[:, r : r + 1], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_later_blocks_change_nothing_earlier(reasoner, clean):
    blocks, before = clean
    changed = blocks.clone()
    changed[:, 1:] += 1
    after = read(reasoner, changed)
    x_t, t = noisy(3)
    v_before, v_after = (reasoner.velocity(c.blocks, x_t, t) for c in (before, after))
    torch.testing.assert_close(v_before[:, :2], v_after[:, :2], rtol=0, atol=1e-6)  # blocks 1 and 2 see Q and block 1
    assert (v_before[0, 2] - v_after[0, 2]).abs().max() > 1e-4  # block 3 does see block 2
    torch.testing.assert_close(before.stop_logits[:, 0], after.stop_logits[:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_noisy_block_does_not_see_its_own_clean_form_or_the_answer(reasoner, clean):
    blocks, before = clean
    changed = blocks.clone()
    changed[:, 0] += 1
    after = read(reasoner, changed, answers=["1+1=2", "2", "3,4"])
    x_t, t = noisy(3)
    v_before, v_after = (reasoner.velocity(c.blocks, x_t, t) for c in (before, after))
    torch.testing.assert_close(v_before[:, 0], v_after[:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_latents_of_a_block_see_each_other_both_ways(reasoner, clean):
    context = Context(clean[1].blocks.past, clean[1].blocks.visible[:, :1], clean[1].blocks.position[:, :1])
    x_t, t = noisy(1)
    v = reasoner.velocity(context, x_t, t)
    for changed_latent, other in ((0, 1), (1, 0)):
        moved = x_t.clone()
        moved[:, :, changed_latent] += 1
        difference = (reasoner.velocity(context, moved, t) - v)[:, :, other].abs().max()
        assert difference > 1e-4


@torch.no_grad()
def test_padding_changes_nothing(reasoner):
    blocks = torch.randn(3, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    padded = read(reasoner, blocks)
    x_t, t = noisy(3)
    v_padded = reasoner.velocity(padded.blocks, x_t, t)
    for row, count in enumerate(BLOCK_VALID.sum(1).tolist()):
        alone = reasoner.read(
            reasoner.backbone.tokenize(QUESTIONS[row : row + 1], opening=True),
            blocks[row : row + 1, :count],
            BLOCK_VALID[row : row + 1, :count],
            reasoner.backbone.tokenize(ANSWERS[row : row + 1], add_eos=True),
        )
        v = reasoner.velocity(alone.blocks, x_t[row : row + 1, :count], t[row : row + 1, :count])
        torch.testing.assert_close(v, v_padded[row : row + 1, :count], rtol=0, atol=1e-5)
        length = alone.answer_logits.shape[1]
        torch.testing.assert_close(alone.answer_logits, padded.answer_logits[row : row + 1, :length], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.stop_logits, padded.stop_logits[row : row + 1, :count], rtol=0, atol=1e-5)


@torch.no_grad()
def test_growing_the_sequence_piece_by_piece_equals_one_pass(reasoner, clean):
    blocks, whole = clean
    x_t, t = noisy(3)
    expected = reasoner.velocity(whole.blocks, x_t, t)
    prefix = reasoner.open(reasoner.backbone.tokenize(QUESTIONS, opening=True))
    for block in range(3):
        running = BLOCK_VALID[:, block]
        v = reasoner.velocity(reasoner.context(prefix), x_t[:, block : block + 1], t[:, block : block + 1])
        torch.testing.assert_close(v[running], expected[running, block : block + 1], rtol=0, atol=1e-5)
        prefix, stop = reasoner.add_block(prefix, blocks[:, block], running)
        torch.testing.assert_close(stop[running], whole.stop_logits[running, block], rtol=0, atol=1e-5)
    first_answer_logits = reasoner.backbone.logits(reasoner.close(prefix).hidden)
    torch.testing.assert_close(first_answer_logits, whole.answer_logits[:, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_hidden_question_reaches_the_answer_only_through_nothing_but_latents(reasoner, clean):
    blocks, _ = clean
    hide = torch.ones(3, dtype=torch.bool)
    # The latents of block 1 and later attend to the question; with no blocks between, the answer must not move.
    empty = torch.zeros_like(BLOCK_VALID)
    tokens = reasoner.backbone.tokenize(ANSWERS, add_eos=True)

    def logits(questions):
        question = reasoner.backbone.tokenize(questions, opening=True)
        return reasoner.read(question, blocks, empty, tokens, hidden_from_answer=hide).answer_logits

    same_lengths = ["44,35,19:61", "3,1,2:5", "60,8:52"]
    torch.testing.assert_close(logits(QUESTIONS), logits(same_lengths), rtol=0, atol=1e-6)


def test_gradients_reach_the_context_through_the_cache(reasoner, clean):
    blocks = clean[0].requires_grad_()
    x_t, t = noisy(3)
    reasoner.velocity(read(reasoner, blocks).blocks, x_t, t)[0, 1].square().sum().backward()
    assert blocks.grad[0, 0].abs().max() > 0
    assert blocks.grad[0, 1:].abs().max() == 0


@torch.no_grad()
def test_a_dropped_question_is_the_same_null_for_all(reasoner, clean):
    blocks, _ = clean
    same_lengths = ["44,35,19:61", "3,1,2:5", "60,8:52"]
    dropped = torch.ones(3, dtype=torch.bool)
    a, b = (read(reasoner, blocks, questions, dropped=dropped).answer_logits for questions in (QUESTIONS, same_lengths))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@torch.no_grad()
def test_saved_reasoner_loads_to_the_same_velocity(reasoner, clean, tmp_path):
    reasoner.save_pretrained(tmp_path)
    loaded = LatentReasoner.from_pretrained(tmp_path)
    x_t, t = noisy(3)
    expected = reasoner.velocity(clean[1].blocks, x_t, t)
    torch.testing.assert_close(loaded.velocity(read(loaded, clean[0]).blocks, x_t, t), expected, rtol=0, atol=1e-6)
    assert list(tmp_path.rglob("*.bin")) == []


def test_an_untrained_reasoner_has_zero_velocity(backbone):
    config = ReasonerConfig(num_latents=2, latent_width=4, max_blocks=3)
    reasoner = LatentReasoner.from_backbone(config, backbone, None)
    blocks = torch.randn(3, 3, 2, 4)
    x_t, t = noisy(3)
    assert reasoner.velocity(read(reasoner, blocks).blocks, x_t, t).abs().max() == 0


@torch.no_grad()
def test_generate_returns_texts_latents_and_trajectories(reasoner):
    out = reasoner.generate(QUESTIONS, num_latents=4, num_steps=3)
    assert [len(row) for row in out.texts] == [4, 4, 4]
    assert out.trajectories.shape[:2] == (3, 4)
    assert out.trajectories.shape[3:] == (4, 2, 4)
    torch.testing.assert_close(out.trajectories[:, :, :, -1], out.latents, rtol=0, atol=0)


@torch.no_grad()
def test_generation_depends_on_the_seed_alone(reasoner):
    first, again, other = (reasoner.generate(QUESTIONS, num_latents=2, num_steps=3, seed=s) for s in (0, 0, 1))
    torch.testing.assert_close(first.latents, again.latents, rtol=0, atol=0)
    assert (first.latents - other.latents).abs().max() > 0.1


@torch.no_grad()
def test_generation_of_one_question_does_not_depend_on_its_batch(reasoner):
    """The noise differs, so compare answers read from the same latents."""
    from ladi.models.generation import answer

    blocks = torch.randn(3, 2, 2, 2, 4, generator=torch.Generator().manual_seed(2))
    counts = torch.tensor([[1, 2], [2, 2], [1, 1]])
    together, _ = answer(reasoner, QUESTIONS, blocks, counts)
    alone = [answer(reasoner, [q], blocks[i : i + 1], counts[i : i + 1])[0][0] for i, q in enumerate(QUESTIONS)]
    assert together == alone


def test_trajectories_that_have_finished_repel_no_other(reasoner, monkeypatch):
    """The pushes of every block, against those of a group from which the finished trajectories were taken out."""
    stop_every_third(monkeypatch, reasoner)
    config = SampleConfig(num_steps=3, guidance=2.0)
    paths = generate_latents(reasoner, QUESTIONS, 5, config, torch.Generator().manual_seed(0))
    assert paths.num_blocks.tolist() == [[1, 3, 3, 1, 3], [3, 1, 3, 3, 1], [3, 3, 1, 3, 3]]
    push = repulsion_push(config.guidance)
    for question, block, step in torch.cartesian_prod(*map(torch.arange, (3, 3, 3))):
        running = paths.num_blocks[question] > block
        states, found = (x[question, :, block, step] for x in (paths.states, paths.pushes))
        expected = push(states[running], paths.times[step], paths.times[step + 1])
        torch.testing.assert_close(found[running], expected, rtol=1e-4, atol=1e-5)
        assert (found[~running] == 0).all()
        assert expected.norm() > 1e-3
