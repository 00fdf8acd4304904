"""Boolean attention masks of block-causal latent reasoning (LaDiR, arXiv:2510.04573, section 3.2).

A row is a query, a column a key; True = may attend. For question q, two blocks of two latents and an answer a:

               q  [ z1 z1 ] [ z2 z2 ] a
        q      x
        z1     x    x  x
        z1     x    x  x               two-way inside a block,
        z2     x    x  x     x  x      causal everywhere else
        z2     x    x  x     x  x
        a      x    x  x     x  x     x

and for two noisy copies r1, r2 of the second block, packed after the cached clean sequence:

               q  [ z1 z1 ] [ z2 z2 ] a | r1 r1 r2 r2
        r1     x    x  x                 | x  x
        r1     x    x  x                 | x  x
        r2     x    x  x                 |       x  x
        r2     x    x  x                 |       x  x
"""

import torch

from ladi.arrays import Bool, Int, Tensor


def block_causal_mask(block: Int[Tensor, "B T"], valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Mask of the clean sequence: causal, and two-way between tokens of one block.

    `block` is the block's number at its latents and -1 at every other token. Invalid (padding) tokens are seen
    by nobody but themselves; each token sees itself, so that no softmax is empty.
    """
    num_tokens = block.shape[1]
    index = torch.arange(num_tokens, device=block.device)
    causal = index[:, None] >= index[None, :]
    same_block = (block[:, :, None] == block[:, None, :]) & (block >= 0)[:, :, None]
    return ((causal | same_block) & valid[:, None, :]) | torch.eye(num_tokens, dtype=torch.bool, device=block.device)


def noisy_copies_mask(visible: Bool[Tensor, "B R S"], copy_len: int) -> Bool[Tensor, "B Q L"]:
    """Mask of R packed noisy copies of `copy_len` tokens each after S cached tokens: Q = R * copy_len, L = S + Q.

    Copy r sees the cached tokens that `visible[:, r]` allows and its own tokens, both ways; no copy sees another.
    """
    batch, num_copies, num_cached = visible.shape
    prefix = visible[:, :, None, :].expand(batch, num_copies, copy_len, num_cached)
    prefix = prefix.reshape(batch, num_copies * copy_len, num_cached)
    copy = torch.arange(num_copies, device=visible.device).repeat_interleave(copy_len)
    own = (copy[:, None] == copy[None, :]).expand(batch, -1, -1)
    return torch.cat([prefix, own], dim=-1)


def append_mask(cached_valid: Bool[Tensor, "B S"], valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T L"]:
    """Causal mask of T appended tokens after S cached tokens, L = S + T; padding is seen only by itself."""
    num_cached, num_tokens = cached_valid.shape[1], valid.shape[1]
    block = torch.full_like(valid, -1, dtype=torch.long)
    own = block_causal_mask(block, valid)
    return torch.cat([cached_valid[:, None, :].expand(-1, num_tokens, num_cached), own], dim=-1)
