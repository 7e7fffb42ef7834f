"""Settings of `hardbench ui`."""

from dataclasses import dataclass

from hardbench.config import Config as AnyConfig
from hardbench.declaration import setting


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of `hardbench ui`."""

    port: int = setting(5000, "Port on 127.0.0.1.", low=1, high=65535)
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)
