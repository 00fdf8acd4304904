"""Array annotations, the shape legend, and a hash of tensors.

Shape letters, the same in every module:
    B batch    R noisy copies or latent trajectories per row    K blocks    N latents per block    D latent width
    T tokens   S cached context tokens    C backbone width    V vocabulary    G group    P problems
    M blocks of a flat batch
"""

import hashlib
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor", "content_hash"]


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
