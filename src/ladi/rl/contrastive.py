"""The contrastive term of DLR: trajectories of one question pushed apart (arXiv:2601.17275, equation 8)."""

from typing import Literal

import torch

from ladi.arrays import Float, Tensor

Similarity = Literal["dot", "cosine"]


def contrastive_loss(
    latents: Float[Tensor, "P G T D"], similarity: Similarity, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """-log( exp(s_kk) / sum_j exp(s_kj) ), the mean over the P * G trajectories, in float32, also where
    autocast would have products in bfloat16.

        dot:     s_kj = z_k . z_j / (T D temperature)
        cosine:  s_kj = cos(z_k, z_j) / temperature

    z_k is a whole trajectory. Differs from the paper, which sums over the group and does not scale the product: a
    product of T D numbers grows with them, and its exponential is not finite at the paper's sizes. log G where all
    trajectories are alike, near 0 where they are far apart.

    Raises:
        ValueError: if the similarity is unknown or the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    z = latents.float().flatten(2)
    if similarity == "cosine":
        z = z / z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    elif similarity == "dot":
        z = z / z.shape[-1] ** 0.5
    else:
        raise ValueError(f"unknown similarity {similarity!r}; use dot or cosine")
    with torch.autocast(z.device.type, enabled=False):
        scores = z @ z.mT / temperature
    own = scores.diagonal(dim1=-2, dim2=-1)
    return (scores.logsumexp(-1) - own).mean()
