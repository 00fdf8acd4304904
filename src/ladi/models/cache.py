"""Keys and values of what a language model has read, one pair a layer."""

from ladi.arrays import Tensor

KeyValues = tuple[tuple[Tensor, Tensor], ...]  # one (keys, values) a layer, each (B, heads, S, head_dim)


def expand_rows(past: KeyValues, repeats: int) -> KeyValues:
    """Keys and values with every row repeated `repeats` times, neighbours together."""
    if repeats == 1:
        return past
    return tuple((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in past)
