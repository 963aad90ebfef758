"""Polynomial decay (§4.1), per step."""


def polynomial_decay(step: int, total_steps: int, power: float) -> float:
    """Return the factor on the learning rate at a step, from 1 at step 0 towards 0."""
    return float((1 - step / total_steps) ** power)
