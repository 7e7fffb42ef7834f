"""Settings of `hardbench data`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.registry import DATASETS
from hardbench.settings import PlaceSettings


@dataclass(frozen=True)
class Config(PlaceSettings):
    """Settings of `hardbench data`."""

    action: str = setting("list", "List all or one, or download and verify one.", choices=("list", "fetch"), position=True)
    name: str | None = setting(None, "Data set by name; emnist:SPLIT, npz:PATH.", choices=DATASETS, position=True)

    def check(self) -> None:
        """Rules that join two settings."""
        if self.action == "fetch" and self.name is None:
            raise ConfigError("name: none; fetch takes a data set, as in hardbench data fetch mnist")
