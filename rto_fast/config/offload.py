"""Settings of what waits in host memory: device memory for time, at the same results bit for bit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OffloadConfig:
    """What lies in host memory while it is not used. On a CPU all of it lies there anyway."""

    frozen: bool = False
    """pi_ref, pi_dpo and the reward model are on the device for a rollout's scores alone. Adapters' base stays."""
    optimizer: bool = False
    """Adam's moments are on the device for the update of their own parameters alone: 16 bytes a trained number cross
    the bus in every step."""
