"""Which experts are fetched ahead of their demand. Knows a predictor and a cache."""

from torch import Tensor, nn

from mixoff.cache.cache import ExpertCache
from mixoff.errors import ConfigError, MixoffError
from mixoff.predictors.base import Predictor, RoutedExperts


class Prefetcher:
    """Fetches the experts of the next layers that a predictor ranks highest.

    Parameters
    ----------
    cache
        Fetches the experts.
    predictor
        Scores the experts of a layer ahead.
    experts
        How many experts are guessed for each layer; 0 for none.
    layers_ahead
        For how many layers after the current one.
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
        """How many experts are guessed for each layer, 0 to all; may be set at any time."""
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
        """For how many of the next layers experts are guessed; may be set at any time."""
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
        """Return the likeliest experts of each layer ahead, on the device, keyed by its distance.

        Parameters
        ----------
        hidden_states
            The layer's own [T, D].
        """
        ranked = {}
        for ahead in range(1, self._layers_ahead + 1):
            target = (layer + ahead) % self._cache.num_layers
            scores = self.predictor.scores(layer, target, hidden_states)  # [T, E]
            if scores is not None:
                ranked[ahead] = scores.sum(0).topk(self._experts).indices  # [experts]
        return ranked

    def prefetch(self, layer: int, choices: RoutedExperts, ranked: dict[int, list[int]]) -> None:
        """Fetch the guessed experts, the nearest layer first; the predictor observes the layer's.

        Parameters
        ----------
        choices
            The experts that the layer's router chose, [T][k].
        ranked
            The guesses, as `look_ahead` gave them.
        """
        self.predictor.observe(layer, choices)
        for ahead, experts in ranked.items():
            target = (layer + ahead) % self._cache.num_layers
            self._cache.prefetch(target, experts, layers_ahead=ahead)


def prefetcher_of(model: nn.Module) -> Prefetcher:
    """Return the prefetcher of a model that mixoff built.

    Raises
    ------
    MixoffError
        If the model has none.
    """
    for module in model.modules():
        if isinstance(prefetcher := getattr(module, "prefetcher", None), Prefetcher):
            return prefetcher
    raise MixoffError(
        f"{type(model).__name__} has no prefetcher: build it with mixoff.build_model."
    )
