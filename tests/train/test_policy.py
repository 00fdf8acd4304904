"""What reinforcement learning of texts and of latents share."""

import pytest
import torch

from ladi.models.decoding import Continuation
from ladi.rl.objective import Normaliser, SurrogateConfig
from ladi.train.policy import OldLogProbs, Texts, text_entropy, text_surrogate

P, R, M, T = 2, 3, 2, 4


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_texts() -> Texts:
    """Texts of 1 to 4 tokens, every third of them cut."""
    lengths = 1 + torch.arange(P * R * M).view(P, R, M) % T
    flat = torch.zeros(P, R, M)
    return Texts(
        ids=torch.zeros(P, R, M, T, dtype=torch.long),
        valid=torch.arange(T) < lengths[..., None],
        finished=(torch.arange(P * R * M) % 3 != 0).view(P, R, M),
        rewards=flat,
        solution=flat.long(),
        timed_out=flat.bool(),
        unjudged=flat.bool(),
    )


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_the_surrogate_of_texts_is_the_policy_gradient_of_the_tokens_that_count(mask_truncated):
    """Element by element: -A / (texts x the text's tokens), and nothing of padding or of texts that are left out."""
    texts, advantages = some_texts(), draw(P, R, M, seed=1)
    new = draw(P * R * M, T).requires_grad_()
    size = Normaliser(P * R * M, 1, T)
    value, terms = text_surrogate(texts, new, OldLogProbs(), advantages, SurrogateConfig(), size, mask_truncated)
    value.backward()
    expected = torch.zeros(P * R * M, T)
    for i, (finished, advantage) in enumerate(zip(texts.finished.flatten(), advantages.flatten(), strict=True)):
        length = int(texts.valid.flatten(0, 2)[i].sum())
        if finished or not mask_truncated:
            expected[i, :length] = -advantage / (P * R * M * length)
    torch.testing.assert_close(new.grad, expected)
    assert terms["loss/text"] == value
    assert texts.counted(mask_truncated).sum() == (expected != 0).sum()


def test_the_kl_of_texts_pulls_towards_the_reference():
    texts, new = some_texts(), draw(P * R * M, T).requires_grad_()
    reference = new.detach() + draw(P * R * M, T, seed=1)
    size, none = Normaliser(P * R * M, 1, T), torch.zeros(P, R, M)
    value, terms = text_surrogate(texts, new, OldLogProbs(), none, SurrogateConfig(), size, False, reference, beta=0.1)
    value.backward()
    valid = texts.valid.flatten(0, 2)
    difference = (reference - new.detach())[valid]
    torch.testing.assert_close(terms["text/kl"], (difference.exp() - difference - 1).mean())
    assert (new.grad[valid].sign() == -difference.sign()).all()  # downhill is towards the reference
    assert (new.grad[~valid] == 0).all()


def test_the_entropy_of_a_rollout_is_the_mean_over_the_tokens_of_all_processes():
    texts = some_texts()
    ids, valid, finished = texts.ids.flatten(0, 2), texts.valid.flatten(0, 2), texts.finished.flatten()
    whole = Continuation(ids, valid, finished, draw(len(ids), T).abs(), 0)
    parts = [
        Continuation(ids[rows], valid[rows], finished[rows], whole.entropies[rows], 0)
        for rows in (slice(0, 3), slice(3, len(ids)))
    ]
    sums = []
    for part in parts:
        text_entropy(part, lambda x: sums.append(x) or x)
    of_each = [text_entropy(part, lambda x: sums[0] + sums[1])["text/entropy"].item() for part in parts]
    assert of_each == pytest.approx([whole.entropies[valid].mean().item()] * 2)
    assert text_entropy(whole)["text/entropy"].item() == pytest.approx(of_each[0])
