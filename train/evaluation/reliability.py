"""Whether probabilities are right: expected calibration error, and the temperature that calibrates them.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (expected calibration error, Eq. 3; temperature
scaling, Eq. 9); 15 bins of equal width, as there.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

BINS = 15
# Temperatures are searched between exp(-LOG_RANGE) and exp(LOG_RANGE): 0.02 to 55.
LOG_RANGE = 4.0


def calibration_error(confidences: Sequence[float], hits: Sequence[bool]) -> float:
    """Return the expected calibration error in percentage points.

    It is the mean over all predictions of |accuracy - mean confidence| of their bin. The bins of `confidences` (in
    [0, 1]) are ((b - 1) / 15, b / 15]; 0 is in the first. Raises ValueError if there are no predictions.
    """
    confidence, hit = np.asarray(confidences, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    if not len(confidence):
        raise ValueError("there are no predictions")
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=hit - confidence, minlength=BINS)
    return float(100 * np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: np.ndarray, answers: np.ndarray) -> float:
    """Return the temperature at which softmax(logits / temperature) has the highest likelihood of the true answers.

    `logits` float [question, answer], -inf for answers that are no choices; `answers` int64 [question]. The negative
    log-likelihood is convex in 1 / temperature, so that there is one minimum. Raises ValueError without questions.
    """
    if not len(logits):
        raise ValueError("there are no questions")
    logits = np.asarray(logits, dtype=np.float64)
    true = logits[np.arange(len(logits)), answers]

    def negative_log_likelihood(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((logsumexp(logits * scale, axis=1) - true * scale).mean())

    found = minimize_scalar(negative_log_likelihood, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded")
    return float(np.exp(found.x))
