import torch

from ladi.flow.path import mix
from ladi.flow.times import sampling_grid
from ladi.inference.sample import predicted_x0


def test_on_a_straight_path_every_state_heads_for_its_end():
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, 2, 4, generator=generator) for _ in range(2))  # (R, K, N, D)
    times = sampling_grid(6)
    states = torch.stack([mix(x0, noise, float(t)) for t in times], dim=2)
    torch.testing.assert_close(predicted_x0(states, times), x0[:, :, None].expand(states.shape), rtol=0, atol=1e-5)
