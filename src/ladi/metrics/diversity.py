"""How different the samples for one question are: by a similarity, and in latent space."""

import torch

from ladi.arrays import Float, Tensor

TOLERANCE = 1e-4
"""How far a similarity matrix may be from symmetric with unit diagonal and no negative eigenvalue."""


def vendi_score(similarity: Float[Tensor, "G G"]) -> float:
    """The effective number of different items, from 1 (all alike) to G (all unlike).

    exp(-sum lambda log lambda) over the eigenvalues of similarity / G (Vendi score, arXiv:2210.02410,
    definition 3.1), in float64. For features use `vendi_score(cosine_similarity(features))`.

    Raises:
        ValueError: if the matrix is empty, not symmetric with unit diagonal, or has a negative eigenvalue.
    """
    similarity = similarity.double()
    if len(similarity) == 0:
        raise ValueError("similarity is empty; the score needs at least one item")
    if (similarity - similarity.T).abs().max() > TOLERANCE or (similarity.diagonal() - 1).abs().max() > TOLERANCE:
        raise ValueError("similarity must be symmetric with ones on its diagonal; normalise the features first")
    eigenvalues = torch.linalg.eigvalsh(similarity / len(similarity))
    if eigenvalues.min() < -TOLERANCE:
        raise ValueError(
            f"similarity has the negative eigenvalue {eigenvalues.min().item() * len(similarity):.3g}; "
            "use a positive semidefinite kernel such as the cosine"
        )
    return torch.special.entr(eigenvalues.clamp_min(0)).sum().exp().item()


def cosine_similarity(features: Float[Tensor, "G D"]) -> Float[Tensor, "G G"]:
    """The cosine of every pair of rows, in float64.

    Raises:
        ValueError: if a row is zero, which has no direction.
    """
    norm = features.double().norm(dim=-1, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError("a feature row is zero and has no direction; drop it or embed it otherwise")
    unit = features.double() / norm
    return unit @ unit.T


def mean_pairwise_distance(z: Float[Tensor, "*batch G N D"]) -> Float[Tensor, "*batch"]:
    """The mean over the pairs i < j of a group of |z_i - z_j|, the distance of whole blocks.

    Raises:
        ValueError: if the group has fewer than two blocks.
    """
    group_size = z.shape[-3]
    if group_size < 2:
        raise ValueError(f"the group has {group_size} block; a distance needs at least 2")
    flat = z.float().flatten(-2)
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    row, column = torch.triu_indices(group_size, group_size, offset=1, device=z.device)
    return distance[..., row, column].mean(-1)
