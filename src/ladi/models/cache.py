"""Keys and values of what a language model has read, one pair a layer."""

from ladi.arrays import Tensor

KeyValues = tuple[tuple[Tensor, Tensor], ...]  # one (keys, values) a layer, each (B, heads, S, head_dim)

ROOM = 32
"""Tokens by which buffers grow."""


class RoomyKeyValues(tuple):
    """KeyValues that are the beginning of longer buffers: a pass writes behind them instead of copying them.

    For decoding: nothing is differentiated, and only the latest of them is continued, since two continuations of one
    would write to the same place.
    """

    buffers: KeyValues
    length: int

    def __new__(cls, buffers: KeyValues, length: int):
        self = super().__new__(cls, ((k[:, :, :length], v[:, :, :length]) for k, v in buffers))
        self.buffers, self.length = buffers, length
        return self

    @classmethod
    def of(cls, past: KeyValues, room: int = ROOM) -> "RoomyKeyValues":
        """A copy of `past` with room for `room` more tokens."""

        def longer(x: Tensor) -> Tensor:
            buffer = x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])
            buffer[:, :, : x.shape[2]] = x
            return buffer

        return cls(tuple((longer(k), longer(v)) for k, v in past), past[0][0].shape[2])

    def with_room(self, num_new: int) -> "RoomyKeyValues":
        """Itself, or longer where `num_new` tokens do not fit."""
        return self if self.length + num_new <= self.buffers[0][0].shape[2] else self.of(self, max(num_new, ROOM))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values with new ones behind them."""
        stop = self.length + keys.shape[2]
        for buffer, new in zip(self.buffers[layer], (keys, values), strict=True):
            buffer[:, :, self.length : stop] = new
        all_keys, all_values = self.buffers[layer]
        return all_keys[:, :, :stop], all_values[:, :, :stop]

    def grown(self, num_new: int) -> "RoomyKeyValues":
        """Those that a pass of `num_new` tokens leaves, once every layer has written."""
        return RoomyKeyValues(self.buffers, self.length + num_new)


def expand_rows(past: KeyValues, repeats: int) -> KeyValues:
    """Keys and values with every row repeated `repeats` times, neighbours together."""
    if repeats == 1:
        return past
    return tuple((k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)) for k, v in past)
