"""The contract of a policy: which resident is evicted first. Knows nothing of tensors or bytes."""

from abc import ABC, abstractmethod

import numpy as np

from mixoff.errors import ConfigError
from mixoff.policies.memory import Memory
from mixoff.policies.usage import Array, Usage


class Policy(ABC):
    """Ranks experts for eviction; a subclass is one small class with one method, `scores`.

    One object serves all layers of a live cache and all caches of a replay, so it keeps its
    settings and nothing that it sees: what `Usage` lacks belongs into a `Memory`.
    """

    bypass = False  # whether a miss may pass by without a slot, if its own score is the lowest

    @abstractmethod
    def scores(self, seen: Usage) -> Array:
        """Return a score for each expert, [..., E], of the demand that `seen` ends with.

        The resident with the lowest score is evicted first, of equal ones that with the lowest
        number. Scores are real numbers; infinity is the highest, and NaN is refused.

        It is pure: it changes neither `seen`, nor ``seen.memory``, nor the policy, since a live
        cache calls it only for demands that miss and for resizes, and a replay for every demand.
        """

    def start(self, resident: Array, slots: Array) -> Memory | None:
        """Return a memory for caches that begin now, or None, the default, to do without.

        Parameters
        ----------
        resident
            [..., E] bool: the experts that caches begin with, as if they had entered in ascending
            order; the memory's own to keep.
        slots
            [..., 1]: how many experts may be resident. A resize changes it in place.
        """
        return None


def has_memory(policy: Policy) -> bool:
    """Whether a policy may keep a memory."""
    return type(policy).start is not Policy.start


def scores_of(policy: Policy, seen: Usage, shape: tuple[int, ...]) -> Array:
    """Return a policy's scores as float64, of a shape that broadcasts to `shape`, [..., E].

    Raises
    ------
    ConfigError
        If they aren't one for each expert.
    """
    scores = np.asarray(policy.scores(seen), np.float64)
    if scores.shape != shape and not _fits(scores.shape, shape):
        raise ConfigError(
            f"policy {type(policy).__name__!r}: scores has shape {scores.shape}, and experts are "
            f"the last axis of {shape}: return one score for each, as `seen.count` has."
        )
    return scores


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return (
        0 < len(shape) <= len(whole)
        and shape[-1] == whole[-1]
        and all(length in (1, full) for length, full in pairs)
    )


def refuse_nan(policy: Policy, scores: Array) -> None:
    """Refuse scores without an order.

    Raises
    ------
    ConfigError
        If one of them is NaN.
    """
    lowest = scores.min()  # NaN if any is: one pass, without an array of answers
    if lowest != lowest:
        expert = np.argwhere(np.isnan(scores))[0, -1]
        raise ConfigError(
            f"policy {type(policy).__name__!r}: scores has NaN for expert {expert}, which has no "
            "rank: return numbers, such as -numpy.inf to evict it first."
        )
