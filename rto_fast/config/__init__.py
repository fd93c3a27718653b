"""The configuration of a run: nested frozen dataclasses, filled from a recipe (TOML) and flags.

Every field's docstring is its --help text. Symbols are those of the paper (arXiv:2404.18922); "v1" is Table 5 of its
first version, "official" the authors' code.
"""

from rto_fast.config.rl import CriticConfig, RewardConfig, RTOConfig, SamplingConfig, ScoreConfig, member
from rto_fast.config.run import (
    NEUTRAL,
    CheckpointConfig,
    CompareConfig,
    Config,
    DataConfig,
    EvalConfig,
    ExportConfig,
    GuardConfig,
    ModelConfig,
    SweepConfig,
)
from rto_fast.config.stages import DPOConfig, OptimConfig, RMConfig, SFTConfig

__all__ = [
    "NEUTRAL",
    "CheckpointConfig",
    "CompareConfig",
    "Config",
    "CriticConfig",
    "DPOConfig",
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "GuardConfig",
    "ModelConfig",
    "OptimConfig",
    "RMConfig",
    "RTOConfig",
    "RewardConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScoreConfig",
    "SweepConfig",
    "member",
]
