"""Settings of `hardbench train`."""

from hardbench.settings import TrainingSettings

Config = TrainingSettings
