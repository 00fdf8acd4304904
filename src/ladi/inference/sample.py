"""Watching a question being thought about: blocks decoded at several times, and trajectories seen in two dimensions."""

from typing import Any

import torch

from ladi.arrays import Float, Tensor
from ladi.flow.path import x0_from_velocity
from ladi.inference.text import judged_text
from ladi.models.generation import Generation, SampleConfig
from ladi.models.reasoner import LatentReasoner
from ladi.tasks import TaskConfig, verify_all
from ladi.tasks.base import Problem
from ladi.tasks.blocks import before_block

SHOWN_TIMES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0)


def frames(times: Float[Tensor, " steps"]) -> list[int]:
    """Indices of the grid times nearest to `SHOWN_TIMES`, without repeats, noise first."""
    return sorted({int((times - shown).abs().argmin()) for shown in SHOWN_TIMES})


def predicted_x0(
    trajectories: Float[Tensor, "*batch steps N D"], times: Float[Tensor, " steps"]
) -> Float[Tensor, "*batch steps N D"]:
    """What each Euler state was heading for: x_t - t v, v being the step's own velocity; the last state itself."""
    x_t, x_next = trajectories[..., :-1, :, :], trajectories[..., 1:, :, :]
    v = (x_next - x_t) / (times[1:] - times[:-1])[:, None, None]
    estimates = x0_from_velocity(x_t, v, times[:-1].expand(x_t.shape[:-2]))
    return torch.cat([estimates, trajectories[..., -1:, :, :]], dim=-3)


def denoising_texts(
    reasoner: LatentReasoner, question: str, out: Generation, row: int, trajectory: int
) -> list[list[str]]:
    """Texts of the blocks of one trajectory at each of `frames(out.times)`: what the model believes then."""
    count = int(out.num_blocks[row, trajectory])
    x0 = predicted_x0(out.trajectories[row, trajectory, :count].cpu(), out.times)[:, frames(out.times)]
    by_block: list[list[str]] = []
    for raw in reasoner.vae.scale.restore(x0.to(out.latents.device)):
        before = before_block(question, [texts[-1] for texts in by_block])
        by_block.append(reasoner.vae.decode(raw, [before] * len(raw)))
    return [list(column) for column in zip(*by_block, strict=True)]


def principal_plane(points: Float[Tensor, "R F"]) -> tuple[Float[Tensor, " F"], Float[Tensor, "F 2"]]:
    """Mean of the points and the two directions of their greatest variance."""
    mean = points.mean(0)
    _, _, directions = torch.linalg.svd(points - mean, full_matrices=False)
    return mean, directions[:2].T


def denoising_record(
    reasoner: LatentReasoner,
    task: TaskConfig,
    problems: list[Problem],
    config: SampleConfig,
    seed: int = 0,
    pca_trajectories: int = 64,
) -> dict[str, Any]:
    """What the report draws of denoising: each problem's blocks as text over time, and one's latents in a plane.

    The plane is the principal one of the finished latents, so that what is far apart at the end is seen apart.
    """
    generator_seed = {"seed": seed, **vars(config)}
    out = reasoner.generate([p.question for p in problems], num_latents=1, **generator_seed)
    shown = frames(out.times)
    answers = [row[0] for row in out.texts]
    verdicts = verify_all(task, problems, [judged_text(text, task, whole=False) for text in answers])
    questions = []
    for i, problem in enumerate(problems):
        questions.append(
            {
                "question": problem.question,
                "times": out.times[shown].tolist(),
                "texts": denoising_texts(reasoner, problem.question, out, i, 0),
                "answer": answers[i],
                "correct": verdicts[i].correct,
            }
        )
    many = reasoner.generate([problems[0].question], num_latents=pca_trajectories, **generator_seed)
    paths = many.trajectories[0].permute(2, 0, 1, 3, 4).flatten(2).cpu()  # (steps, R, K * N * D)
    mean, plane = principal_plane(paths[-1])
    ends = [judged_text(text, task, whole=False) for text in many.texts[0]]
    return {
        "questions": questions,
        "pca": {
            "question": problems[0].question,
            "times": many.times.tolist(),
            "xy": ((paths - mean) @ plane).tolist(),
            "correct": [v.correct for v in verify_all(task, [problems[0]] * len(ends), ends)],
        },
    }
