"""The reward's fields among other keyword arguments, as the tests draw and change them."""

from collections.abc import Callable

from rto_fast.kernels.token_reward_gae import RewardSpec


def rewarded(op: Callable, *args: object, **given: object) -> tuple:
    """`op`, with those of `given` that are fields of a RewardSpec as its one `reward`."""
    fields = {name: given.pop(name) for name in RewardSpec._fields if name in given}
    return op(*args, reward=RewardSpec(**fields), **given)
