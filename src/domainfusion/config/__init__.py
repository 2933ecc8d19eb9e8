"""Every option, typed, frozen and checked, in a file for each thing that has options.

No torch here, so that `--help` is instant.

The command line and TOML files hold the same names: `[distill] samples = 4` is `--distill.samples 4`. What a run was
made with is written to its folder as `config.toml`, every option resolved.
"""

from domainfusion.config.auditing import AuditConfig
from domainfusion.config.averaging import AverageConfig
from domainfusion.config.baselines import CoralConfig, GroupDROConfig, MixStyleConfig, MixupConfig, RSCConfig
from domainfusion.config.data import DataConfig
from domainfusion.config.distillation import DistillConfig
from domainfusion.config.generation import GenerateConfig
from domainfusion.config.kinds import STRICT, Corruption, Count, Precision, Residual
from domainfusion.config.pretraining import PretrainConfig
from domainfusion.config.training import TrainConfig
from domainfusion.config.translation import CDGAConfig, DSIConfig
from domainfusion.config.zero_shot import ZeroShotConfig

__all__ = [
    "STRICT",
    "AuditConfig",
    "AverageConfig",
    "CDGAConfig",
    "CoralConfig",
    "Corruption",
    "Count",
    "DSIConfig",
    "DataConfig",
    "DistillConfig",
    "GenerateConfig",
    "GroupDROConfig",
    "MixStyleConfig",
    "MixupConfig",
    "Precision",
    "PretrainConfig",
    "RSCConfig",
    "Residual",
    "TrainConfig",
    "ZeroShotConfig",
]
