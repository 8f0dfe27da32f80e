"""Settings of a run. Knows values and their rules; knows nothing of models, files or torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.registry import LIVE_POLICIES
from mixoff.predictors import PREDICTORS, Predictor
from mixoff.units import AUTO, parse_budget

HostTier = Literal["inclusive", "exclusive"]
Io = Literal["direct", "buffered"]
Miss = Literal["fetch", "compute", "auto"]


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """How many experts are in device and host memory, which are evicted, and which prefetched.

    A budget is a number of bytes, a text such as ``"10GiB"``, or ``"auto"``: the memory that is
    free when the model is loaded, less some headroom. `mixoff.plan_memory` returns what a budget
    holds.

    Parameters
    ----------
    offload_per_layer
        How many of a layer's experts start outside the device, so that
        ``slots_per_layer = experts - offload_per_layer``. The experts with the highest numbers
        start on the device. The default is half of a layer's experts. If it is all of them, none
        stays on the device: each expert is fetched when it is needed, and dropped after use.
    device_memory
        Instead of `offload_per_layer`: the budget for everything on the device. Layers get as many
        slots as fit beside the non-expert parameters, the KV cache, the workspace and the staging
        buffers.
    host_memory
        The budget for records in host memory that are not on the device. All others are read from
        disk on every miss.
    pinned_memory
        With a GPU, how much of host memory may be pinned, from which a GPU copies faster.
    host_tier
        ``"inclusive"``: host memory also keeps the records that are on the device.
        ``"exclusive"``: a record is in only one of them, and moves to the other when it is fetched
        or evicted. ``"auto"``: inclusive where host memory holds all records and the device is a
        GPU.
    policy
        Ranks residents for eviction: a name in `mixoff.policies.LIVE_POLICIES` or a `Policy`.
    prefetch
        How many experts are guessed and fetched for each layer ahead; 0 for none.
    layers_ahead
        For how many of the next layers experts are guessed.
    predictor
        Guesses experts: a name in `mixoff.predictors.PREDICTORS` or a `Predictor`.
    staging
        Device buffers that belong to no layer, into which experts are copied first.
    io
        ``"direct"`` reads past the system's page cache, ``"buffered"`` through it; ``"auto"``:
        direct where the experts exceed the memory that stays free.
    miss
        With a GPU, how a missed expert is served whose record is in host memory. ``"fetch"``
        copies it into a slot. ``"compute"`` computes it on the CPU for the tokens that chose it,
        while the GPU continues with the others. Nothing is evicted for it, and only records on disk
        are fetched, so that residents no longer change once host memory holds all other records.
        ``"auto"`` chooses the faster, by the last times of copies and of computed experts: a
        prompt's experts are mostly fetched, which changes the residents, and a token's are computed
        where the link is slow.

    Raises
    ------
    ConfigError
        If a value can't be used.
    """

    offload_per_layer: int | None = None
    device_memory: int | str | None = None
    host_memory: int | str = 0
    pinned_memory: int | str = AUTO
    host_tier: Literal["auto"] | HostTier = "auto"
    policy: str | Policy = "lru"
    prefetch: int = 0
    layers_ahead: int = 1
    predictor: str | Predictor = "next-gate"
    staging: int = 4
    io: Literal["auto"] | Io = "auto"
    miss: Miss = "fetch"

    def __post_init__(self) -> None:
        if self.offload_per_layer is not None:
            _check_count(self, "offload_per_layer", 0, "every expert on the device")
            if self.device_memory is not None:
                raise ConfigError(
                    f"offload_per_layer={self.offload_per_layer} and device_memory="
                    f"{self.device_memory!r}: each sets the number of slots, so give one of them."
                )
        _check_count(self, "prefetch", 0, "no guesses")
        _check_count(self, "layers_ahead", 1, "the next layer")
        _check_count(self, "staging", 2, "one is filled while another is used")
        for budget in (self.host_memory, self.pinned_memory):
            parse_budget(budget)
        if self.device_memory is not None:
            parse_budget(self.device_memory)
        _check_word(self, "io", (AUTO, *get_args(Io)))
        _check_word(self, "host_tier", (AUTO, *get_args(HostTier)))
        _check_word(self, "miss", get_args(Miss))
        if not isinstance(self.predictor, Predictor) and self.predictor not in tuple(PREDICTORS):
            raise ConfigError(
                f"predictor={self.predictor!r}: give one of {', '.join(PREDICTORS)}, "
                "or a Predictor."
            )
        if not isinstance(self.policy, Policy) and self.policy not in tuple(LIVE_POLICIES):
            raise ConfigError(
                f"policy={self.policy!r}: give one of {', '.join(LIVE_POLICIES)}, or a Policy."
            )

    @classmethod
    def auto(cls) -> "OffloadConfig":
        """Return settings that use the free memory, on the device and then on the host."""
        return cls(device_memory=AUTO, host_memory=AUTO)

    def slots_per_layer(self, num_experts: int) -> int:
        """Return how many slots a layer of `num_experts` experts has, without a budget.

        Raises
        ------
        ConfigError
            If `offload_per_layer` is more than a layer's experts, or if `device_memory` is given,
            from which only `mixoff.plan_memory` gets the number.
        """
        if self.device_memory is not None:
            raise ConfigError(
                f"device_memory={self.device_memory!r}: how many slots fit depends on the model: "
                "call mixoff.plan_memory."
            )
        if self.offload_per_layer is None:
            return num_experts - num_experts // 2
        if self.offload_per_layer > num_experts:
            raise ConfigError(
                f"offload_per_layer={self.offload_per_layer}: a layer of this model has "
                f"{num_experts} experts: give 0 to {num_experts}, which keeps none."
            )
        return num_experts - self.offload_per_layer


def _check_count(settings: OffloadConfig, name: str, least: int, meaning: str) -> None:
    value = getattr(settings, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r}: give a whole number from {least} ({meaning}) up.")


def _check_word(settings: OffloadConfig, name: str, words: tuple[str, ...]) -> None:
    if (value := getattr(settings, name)) not in words:
        raise ConfigError(f"{name}={value!r}: give one of {', '.join(words)}.")
