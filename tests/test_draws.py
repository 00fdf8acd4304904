"""Streams of random numbers: one a question, whatever its company."""

import pytest
import torch

from ladi.draws import Streams, child, mix_seed, normal, shared, uniform


def test_a_question_gets_the_same_numbers_in_any_company():
    together = normal((6, 3), Streams.of(5, range(3)))
    alone = normal((2, 3), Streams.of(5, [1]))
    assert torch.equal(together[2:4], alone)
    assert not torch.equal(together[:2], together[2:4])


def test_streams_differ_by_seed_step_question_and_purpose():
    sources = [Streams.of(0, [0]), Streams.of(1, [0]), Streams.of(0, [1]), Streams.of(0, [0], step=1)]
    sources += [sources[0].child(1), sources[0].child(2), sources[0].child(1).child(1)]
    drawn = [float(uniform((1,), source)) for source in sources]
    assert len(set(drawn)) == len(drawn)


def test_a_child_does_not_depend_on_what_was_drawn_before():
    fresh, used = Streams.of(0, [4]), Streams.of(0, [4])
    normal((1, 100), used)
    assert torch.equal(normal((1, 5), fresh.child(3)), normal((1, 5), used.child(3)))
    assert not torch.equal(normal((1, 5), fresh), normal((1, 5), used))


def test_numbers_have_their_distribution_over_questions():
    drawn = normal((20_000,), Streams.of(0, range(20_000)))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    lagged = torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]))[0, 1]
    assert abs(float(lagged)) < 0.03  # neighbours' streams are independent


def test_what_all_questions_share_does_not_depend_on_which_they_are():
    a, b = (torch.randperm(20, generator=shared(Streams.of(0, q, 7))) for q in ([0, 1], [2, 3]))
    assert torch.equal(a, b)


def test_a_plain_generator_does_too():
    generator = torch.Generator().manual_seed(0)
    assert child(generator, 1) is generator is shared(generator)
    assert normal((2, 3), generator).shape == (2, 3)


def test_rows_that_questions_cannot_share_are_refused():
    with pytest.raises(ValueError, match="5 rows"):
        normal((5, 2), Streams.of(0, range(2)))


def test_mixed_seeds_do_not_collide():
    seeds = {mix_seed(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000
    assert mix_seed(1, 2) != mix_seed(2, 1)
