"""Which experts are fetched ahead of their demand. Knows a predictor and a cache."""

from torch import Tensor, nn

from mixoff.cache.cache import ExpertCache
from mixoff.errors import ConfigError, MixoffError
from mixoff.predictors.base import Predictor, RoutedExperts


class Prefetcher:
    """Asks a predictor for the next layers' likeliest experts, and a cache to fetch them.

    Parameters
    ----------
    cache
        Fetches.
    predictor
        Guesses.
    experts
        How many experts are guessed for each layer; 0 for none.
    layers_ahead
        For how many layers after the present one.
    """

    def __init__(
        self, cache: ExpertCache, predictor: Predictor, *, experts: int, layers_ahead: int = 1
    ) -> None:
        self.predictor = predictor
        self._cache = cache
        self._experts = min(experts, cache.num_experts)
        self._layers_ahead = min(layers_ahead, cache.num_layers - 1)

    @property
    def experts(self) -> int:
        """How many experts are guessed for each layer, 0 to all; one that is set serves at once."""
        return self._experts

    @experts.setter
    def experts(self, experts: int) -> None:
        if not 0 <= experts <= self._cache.num_experts:
            raise ConfigError(
                f"prefetch={experts}: a layer has {self._cache.num_experts} experts, so give 0 to "
                f"{self._cache.num_experts}."
            )
        self._experts = self._cache.provenance["prefetch"] = experts

    @property
    def layers_ahead(self) -> int:
        """For how many of the next layers; one that is set serves at once."""
        return self._layers_ahead

    @layers_ahead.setter
    def layers_ahead(self, layers: int) -> None:
        most = self._cache.num_layers - 1
        if not 1 <= layers <= most:
            raise ConfigError(
                f"layers_ahead={layers}: a model of {most + 1} layers has 1 to {most} after one."
            )
        self._layers_ahead = self._cache.provenance["layers_ahead"] = layers

    def look_ahead(self, layer: int, hidden_states: Tensor) -> dict[int, Tensor]:
        """Return the likeliest experts of layers ahead, on the device, by their distance."""
        ranked = {}
        for ahead in range(1, self._layers_ahead + 1):
            target = (layer + ahead) % self._cache.num_layers
            scores = self.predictor.scores(layer, target, hidden_states)  # [T, E]
            if scores is not None:
                ranked[ahead] = scores.sum(0).topk(self._experts).indices  # [experts]
        return ranked

    def prefetch(self, layer: int, choices: RoutedExperts, ranked: dict[int, list[int]]) -> None:
        """Fetch what was guessed, the nearest layer first, and learn what the layer chose."""
        self.predictor.observe(layer, choices)
        for ahead, experts in ranked.items():
            target = (layer + ahead) % self._cache.num_layers
            self._cache.prefetch(target, experts, layers_ahead=ahead)


def prefetcher_of(model: nn.Module) -> Prefetcher:
    """Return what guesses for the expert cache of a model that mixoff built.

    Raises
    ------
    MixoffError
        If the model has none.
    """
    for module in model.modules():
        if isinstance(prefetcher := getattr(module, "prefetcher", None), Prefetcher):
            return prefetcher
    raise MixoffError(
        f"{type(model).__name__} has nothing that guesses experts: build it with "
        "mixoff.build_model."
    )
