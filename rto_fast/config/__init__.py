"""The configuration of a run: nested frozen dataclasses, filled from a recipe (TOML) and flags.

Every field's docstring is its --help text. Symbols are those of the paper (arXiv:2404.18922); "v1" is Table 5 of its
first version, "official" the authors' code.
"""

from rto_fast.config.adapter import AdapterConfig as AdapterConfig
from rto_fast.config.offload import OffloadConfig as OffloadConfig
from rto_fast.config.rl import CorrectionConfig as CorrectionConfig
from rto_fast.config.rl import CriticConfig as CriticConfig
from rto_fast.config.rl import RewardConfig as RewardConfig
from rto_fast.config.rl import RTOConfig as RTOConfig
from rto_fast.config.rl import SamplingConfig as SamplingConfig
from rto_fast.config.rl import ScoreConfig as ScoreConfig
from rto_fast.config.rl import member as member
from rto_fast.config.run import NEUTRAL as NEUTRAL
from rto_fast.config.run import CheckpointConfig as CheckpointConfig
from rto_fast.config.run import CompareConfig as CompareConfig
from rto_fast.config.run import Config as Config
from rto_fast.config.run import DataConfig as DataConfig
from rto_fast.config.run import EvalConfig as EvalConfig
from rto_fast.config.run import GuardConfig as GuardConfig
from rto_fast.config.run import ModelConfig as ModelConfig
from rto_fast.config.run import SweepConfig as SweepConfig
from rto_fast.config.stages import DPOConfig as DPOConfig
from rto_fast.config.stages import OptimConfig as OptimConfig
from rto_fast.config.stages import RMConfig as RMConfig
from rto_fast.config.stages import SFTConfig as SFTConfig
