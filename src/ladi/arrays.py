"""Array annotations and the shape legend.

Shape letters, the same in every module:
    B batch    R noisy copies or latent trajectories per row    K blocks    N latents per block    D latent width
    T tokens   S cached context tokens    C backbone width    V vocabulary    G group    P problems
    M blocks of a flat batch
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
