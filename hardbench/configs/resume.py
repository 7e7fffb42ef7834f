"""Settings of `hardbench resume`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.settings import MachineSettings, PlaceSettings


@dataclass(frozen=True)
class Config(MachineSettings, PlaceSettings):
    """Settings of `hardbench resume`. Device, threads and data folder are the run's own unless given."""

    run: str = setting("last", "Run id, unique prefix of one, or last (the newest unfinished one).", position=True, was=("run_dir",))
