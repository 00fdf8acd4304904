"""Random numbers that belong to questions.

Sampling for many questions at once draws from `Streams`: one generator a question, so that what a question gets does
not depend on which others share its batch, its chunk or its process. A plain torch.Generator does where that is no
matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MODULUS = 2**63 - 25
"""A prime below the largest seed."""


def mix_seed(*parts: int) -> int:
    """A seed that depends on all parts and their order; near parts give far seeds."""
    seed = 0
    for part in parts:
        seed = (seed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % MODULUS
        seed = (seed ^ (seed >> 29)) * 0xBF58476D1CE4E5B9 % MODULUS
    return seed


@dataclass(frozen=True)
class Streams:
    """One stream of random numbers for each of B questions, and one that they share."""

    seeds: tuple[int, ...]
    shared_seed: int
    generators: tuple[torch.Generator, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        made = tuple(torch.Generator().manual_seed(seed) for seed in self.seeds)
        object.__setattr__(self, "generators", made)

    @classmethod
    def of(cls, seed: int, questions: Sequence[int], step: int = 0) -> "Streams":
        """The streams of the questions with these numbers at a step."""
        return cls(tuple(mix_seed(seed, step, q) for q in questions), mix_seed(seed, step, -1))

    def child(self, purpose: int) -> "Streams":
        """Fresh streams for another purpose, whatever was drawn from these."""
        return Streams(tuple(mix_seed(seed, purpose) for seed in self.seeds), mix_seed(self.shared_seed, purpose))


Source = torch.Generator | Streams


def normal(shape: Sequence[int], source: Source) -> Tensor:
    """Standard normal numbers on the CPU; the first axis is that of questions, or of equally many rows for each."""
    return _drawn(torch.randn, shape, source)


def uniform(shape: Sequence[int], source: Source) -> Tensor:
    """Numbers in [0, 1), as `normal`."""
    return _drawn(torch.rand, shape, source)


def _drawn(draw, shape: Sequence[int], source: Source) -> Tensor:
    if isinstance(source, torch.Generator):
        return draw(*shape, generator=source)
    rows, rest = divmod(shape[0], len(source.seeds))
    if rest:
        raise ValueError(f"{shape[0]} rows cannot be shared by {len(source.seeds)} questions")
    return torch.cat([draw(rows, *shape[1:], generator=generator) for generator in source.generators])


def child(source: Source, purpose: int) -> Source:
    """`Streams.child`; a plain generator goes on."""
    return source if isinstance(source, torch.Generator) else source.child(purpose)


def shared(source: Source) -> torch.Generator:
    """A generator for what all questions of a batch have in common, the same in every process."""
    return source if isinstance(source, torch.Generator) else torch.Generator().manual_seed(source.shared_seed)
