"""Settings of `hardbench idle-units`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.settings import MachineSettings, PlaceSettings, wrong_name, wrong_tags


@dataclass(frozen=True)
class Config(MachineSettings, PlaceSettings):
    """Settings of a count of idle units."""

    run: str = setting("last", "Trained run: id, unique prefix of one, or last.", position=True)
    share: float = setting(0.01, "A unit that fewer of the test samples activate is idle.", low=0, high=1, headline=True)
    precision: str = setting("fp32", "Arithmetic of the products.", choices=("fp32", "bf16"))
    name: str | None = setting(None, "Run name; default: that of the trained run.", wrong=wrong_name)
    tag: dict[str, str] | None = setting(None, "Tags for the run, k=v,k2=v2.", wrong=wrong_tags)
