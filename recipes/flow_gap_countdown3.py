"""How far a reasoner's velocities of the first block are from the best possible ones, on Countdown-3.

    python recipes/flow_gap_countdown3.py "LaDiR=runs/cd3_tiny/reasoner/final" "bundled=assets/cd3_tiny/stage1"

The first steps of all solutions of a puzzle, and their latents, can be listed. So can be computed what no model can
beat: the posterior mean of x0 given x_t and the puzzle. The same over all valid first steps, whether they lead to the
target or not, is what a model knows that has learned to write but not to plan. Their flow losses, means over times from
0.3 to 0.95, go into docs/results.md, with `planning`: the share of the way from the latter to the former that the model
has gone.
"""

import sys
from itertools import combinations
from pathlib import Path

import torch

from ladi.arrays import Float, Tensor
from ladi.bundled import resolve
from ladi.flow.path import mix
from ladi.models.reasoner import LatentReasoner
from ladi.models.vae import ThoughtVAE
from ladi.report import numbers_table, update_markdown
from ladi.rundir import provenance
from ladi.tasks.blocks import Block, before_block
from ladi.tasks.countdown import Countdown, combine

TASK = Countdown(size=3, max_input=50)
PROBLEMS = [TASK.problem("test", i) for i in range(300)]
TIMES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
COPIES = 16


def first_steps(problem) -> dict[str, int]:
    """Every valid first step -> in how many ways the second one reaches the target (0: it does not)."""
    values, target = problem.meta["numbers"], problem.meta["target"]
    return {
        step: sum(rest == (target,) for _, rest in combine(left, 0, 1))
        for i, j in combinations(range(3), 2)
        for step, left in combine(values, i, j)
    }


@torch.no_grad()
def latents_of(vae: ThoughtVAE, question: str, steps: list[str]) -> Float[Tensor, "S ND"]:
    blocks = [Block(before_block(question, ()), step) for step in steps]
    return vae.standardise(vae.encode(vae.tokenize(blocks)).mean).flatten(1)


def posterior_mean(x_t: Tensor, t: float, z: Tensor, weights: Tensor) -> Float[Tensor, "R ND"]:
    """E[x0 | x_t] where x0 is one of the rows of z, with the given prior weights."""
    log_likelihood = -(x_t[:, None] - (1 - t) * z).square().sum(-1) / (2 * t * t)
    return (log_likelihood + weights.log()).softmax(-1) @ z


@torch.no_grad()
def measure(path: str) -> dict[str, float]:
    reasoner = LatentReasoner.from_pretrained(resolve(Path(path)))
    shape = (len(PROBLEMS), COPIES, reasoner.config.num_latents, reasoner.config.latent_width)
    context = reasoner.context(reasoner.open(reasoner.backbone.tokenize([p.question for p in PROBLEMS], opening=True)))
    generator = torch.Generator().manual_seed(0)
    solved = [(p, first_steps(p)) for p in PROBLEMS]
    spaces = [latents_of(reasoner.vae, p.question, list(steps)) for p, steps in solved]
    ways = [torch.tensor(list(steps.values()), dtype=torch.float) for _, steps in solved]
    losses = []
    for t in TIMES:
        chosen = [torch.multinomial(w, COPIES, replacement=True, generator=generator) for w in ways]
        x0 = torch.stack([z[i] for z, i in zip(spaces, chosen, strict=True)])
        times = torch.full(shape[:2], t)
        x_t = mix(x0[..., None], torch.randn(x0.shape, generator=generator)[..., None], times).squeeze(-1)

        def loss(estimate: Tensor, x0: Tensor = x0, t: float = t) -> float:
            return ((estimate - x0) / t).square().mean().item()  # v - v_theta = (x0_theta - x0) / t

        best = torch.stack([posterior_mean(x, t, z, w) for x, z, w in zip(x_t, spaces, ways, strict=True)])
        blind = torch.stack([posterior_mean(x, t, z, torch.ones(len(z))) for x, z in zip(x_t, spaces, strict=True)])
        model = x_t - t * reasoner.velocity(context, x_t.view(shape), times).flatten(2)
        losses.append([loss(best), loss(blind), loss(model)])
    means = torch.tensor(losses).mean(0)
    return {
        "best possible": means[0].item(),
        "blind to the target": means[1].item(),
        "model": means[2].item(),
        "planning (%)": 100 * ((means[1] - means[2]) / (means[1] - means[0])).item(),
    }


if __name__ == "__main__":
    models = dict(argument.split("=", 1) for argument in sys.argv[1:])
    table = {label: measure(path) for label, path in models.items()}
    command = {"command": "python recipes/flow_gap_countdown3.py " + " ".join(f'"{a}"' for a in sys.argv[1:])}
    text = numbers_table(table, {**provenance(), **command})
    update_markdown(Path(__file__).parents[1] / "docs" / "results.md", "cd3_flow_gap", text)
    print(text)
