from itertools import combinations

import numpy as np
import pytest

from ladi.metrics.passk import bootstrap_interval, pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_success(num_samples):
    for num_correct in range(num_samples + 1):
        samples = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            share = np.mean([any(subset) for subset in combinations(samples, k)])
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(share)


def test_pass_at_1_is_the_accuracy():
    assert pass_at_k(200, 37, 1) == pytest.approx(37 / 200)


def test_pass_at_k_of_many_samples_stays_a_probability():
    assert 0 < pass_at_k(100_000, 1, 50_000) < 1


def test_numpy_integers_are_accepted():
    assert pass_at_k(np.int64(8), np.int64(2), np.int64(3)) == pass_at_k(8, 2, 3)


@pytest.mark.parametrize(("num_correct", "k"), [(-1, 1), (9, 1), (2, 0), (2, 9)])
def test_impossible_counts_are_refused(num_correct, k):
    with pytest.raises(ValueError, match="must lie in"):
        pass_at_k(8, num_correct, k)


def test_the_interval_is_near_the_normal_approximation():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=500)
    half = 1.96 * values.std() / np.sqrt(500)
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_lower_level_gives_a_narrower_interval():
    values = np.arange(30.0)
    wide, narrow = bootstrap_interval(values, level=0.95), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_equal_values_have_no_spread():
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)


def test_a_seed_fixes_the_interval():
    assert bootstrap_interval(range(20), seed=1) == bootstrap_interval(list(range(20)), seed=1)


@pytest.mark.parametrize(("values", "kwargs"), [([], {}), ([1.0], {"level": 1.0}), ([1.0], {"num_resamples": 0})])
def test_an_interval_of_nothing_is_refused(values, kwargs):
    with pytest.raises(ValueError, match=r"must|give one number"):
        bootstrap_interval(values, **kwargs)
