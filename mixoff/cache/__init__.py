"""Which experts are on the device now; serves one demand after another.

Knows layers, experts, slots and what is in flight; knows nothing of models or files. Read
`cache.py` first, then `serving.py`, which serves a demand, and `state.py`, which it changes.
"""

from mixoff.cache.cache import ExpertCache, cache_of, find_cache
from mixoff.cache.prefetcher import Prefetcher, prefetcher_of
from mixoff.cache.stats import CacheStats

__all__ = ["CacheStats", "ExpertCache", "Prefetcher", "cache_of", "find_cache", "prefetcher_of"]
