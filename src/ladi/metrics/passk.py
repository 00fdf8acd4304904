"""pass@k without bias, and bootstrap intervals over questions."""

from collections.abc import Sequence

import numpy as np

Count = int | np.integer


def pass_at_k(num_samples: Count, num_correct: Count, k: Count) -> float:
    """The probability that k of the samples, drawn without replacement, contain a correct one.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of Codex (arXiv:2107.03374, equation 1), as the product
    of (1 - k / i) over i = n - c + 1 .. n, which no large n overflows.

    Raises:
        ValueError: unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct is {num_correct}; it must lie in 0 .. num_samples ({num_samples})")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; it must lie in 1 .. num_samples ({num_samples}), or draw more samples")
    if num_samples - num_correct < k:
        return 1.0
    failures = 1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1)
    return float(1.0 - np.prod(failures))


def bootstrap_interval(
    values: Sequence[float | int] | np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of the mean of `values`, one value per question.

    Questions are resampled with replacement; the samples within a question are not.

    Raises:
        ValueError: if there are no values, level is outside (0, 1), or num_resamples < 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values has shape {values.shape}; give one number for each of at least one question")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1, as in 0.95")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1")
    chosen = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
