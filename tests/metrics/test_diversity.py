import pytest
import torch

from ladi.metrics.diversity import cosine_similarity, mean_pairwise_distance, vendi_score


def test_identical_items_count_as_one():
    assert vendi_score(torch.ones(5, 5)) == pytest.approx(1)


def test_orthogonal_items_count_each():
    assert vendi_score(torch.eye(5)) == pytest.approx(5)


def test_two_clusters_count_as_two():
    assert vendi_score(torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))) == pytest.approx(2)


def test_the_score_does_not_depend_on_the_order():
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    straight, reversed_ = (
        vendi_score(cosine_similarity(features)),
        vendi_score(cosine_similarity(features.flip(0))),
    )
    assert straight == pytest.approx(reversed_)


def test_the_score_of_features_is_at_most_their_dimension():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert 2 < vendi_score(cosine_similarity(features)) <= 3


def test_a_matrix_without_unit_diagonal_is_refused():
    with pytest.raises(ValueError, match="ones on its diagonal"):
        vendi_score(2 * torch.eye(3))


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="symmetric"):
        vendi_score(torch.ones(3, 3).triu())


def test_a_matrix_with_a_negative_eigenvalue_is_refused():
    with pytest.raises(ValueError, match="negative eigenvalue"):
        vendi_score(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_a_zero_feature_is_refused():
    with pytest.raises(ValueError, match="no direction"):
        cosine_similarity(torch.zeros(2, 3))


def test_the_mean_distance_is_that_of_pdist():
    z = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.pdist(group.flatten(1)).mean() for group in z])
    assert torch.allclose(mean_pairwise_distance(z), expected)


def test_near_pairs_far_from_the_origin_keep_their_distance():
    z = torch.full((40, 1, 4), 100.0) + 0.01 * torch.eye(40)[:, None, :4]
    assert mean_pairwise_distance(z).item() == pytest.approx(torch.pdist(z.flatten(1).double()).mean().item(), rel=1e-3)


def test_the_distance_of_a_single_block_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_distance(torch.ones(1, 3, 4))
