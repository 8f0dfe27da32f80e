"""The table of policies, by the names that options and sweeps take."""

from collections.abc import Callable

from mixoff.errors import ConfigError
from mixoff.policies.base import Policy
from mixoff.policies.fixed import Random, Static
from mixoff.policies.frequency import LFU
from mixoff.policies.optimal import Belady, BeladyBypass
from mixoff.policies.recency import FIFO, LRU

POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": LRU,
    "lfu": LFU,
    "fifo": FIFO,
    "random": Random,
    "static": Static,
    "belady": Belady,
    "belady-bypass": BeladyBypass,
}


LIVE_POLICIES = tuple(name for name in POLICIES if not name.startswith("belady"))


def policy_named(policy: "str | Policy") -> Policy:
    """Return the policy of a name, or a policy itself.

    Raises
    ------
    ConfigError
        If there is no policy of that name.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in tuple(POLICIES):
        raise ConfigError(f"policy={policy!r}: give one of {', '.join(POLICIES)}, or a Policy.")
    return POLICIES[policy]()


def policy_name(policy: "str | Policy") -> str:
    """Return the name of a policy in traces and tables.

    That is its name in POLICIES, or else its class's in lower case, followed by the settings that
    aren't the default, "random(seed=3)"; of arrays and the like only their names: "static(worth)".
    """
    if not isinstance(policy, Policy):
        return policy_name(policy_named(policy))
    names = [name for name, make in POLICIES.items() if make is type(policy)]
    defaults = vars(POLICIES[names[0]]()) if names else {}
    settings = [
        f"{name}={value}" if isinstance(value, int | float | str) else name
        for name, value in vars(policy).items()
        if value is not defaults.get(name)
    ]
    name = names[0] if names else type(policy).__name__.lower()
    return f"{name}({', '.join(settings)})" if settings else name
