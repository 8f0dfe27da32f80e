"""What a policy may remember of caches beyond `Usage`. Knows which hooks are called, and when."""

from mixoff.policies.usage import Array


class Memory:
    """A policy's own arrays, such as a queue, and the hooks that keep them up to date.

    `Policy.start` makes one for the caches that begin together: for one layer in a live cache, for
    all sizes and layers at once in a replay. Their hooks are called at the same events with masks
    [..., E] over E experts, so a memory of arrays [..., E] and of numpy operations along the last
    axis serves both. `Policy.scores` reads it as ``seen.memory``.

    Every demand is reported by `demanded`. Then its misses are let in, in ascending order. For
    each, if no slot is free, `scores` is called and the resident that it ranks lowest is evicted,
    which `evicted` reports; `admitted` reports the newcomer. In a mask of these two a layer has one
    expert at most, and none if nothing happens to it.

    What else changes the residents is reported by the same hooks:

    * A resize to fewer slots evicts one resident after the other, each the one that `scores` ranks
      lowest of all. The array of slots that `Policy.start` was given has the new number already.
    * After a demand that was interrupted, other experts may be resident than were decided. Each
      that is no longer resident is evicted as the only candidate, then each that is resident again
      is admitted, both in ascending order. Nothing else is undone.

    A miss that gets no slot, because it passes by (`Policy.bypass`, or a cache without slots), is
    reported by `demanded` alone; one that is computed in host memory by none of the hooks.
    """

    def demanded(self, hits: Array, misses: Array) -> None:
        """Note a demand, before any of its misses is let in; by default, nothing.

        Parameters
        ----------
        hits, misses
            [..., E] bool: the needed experts that are resident, and those that are to be let in.
        """

    def evicted(self, victims: Array, candidates: Array) -> None:
        """Note that residents are evicted; by default, nothing.

        Parameters
        ----------
        victims
            [..., E] bool.
        candidates
            [..., E] bool: the residents that each victim was chosen among, itself included. They
            are those outside the demand, or all if no other is left.
        """

    def admitted(self, newcomers: Array) -> None:
        """Note that experts became resident; by default, nothing.

        Parameters
        ----------
        newcomers
            [..., E] bool.
        """
