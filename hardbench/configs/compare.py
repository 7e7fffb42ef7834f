"""Settings of `hardbench compare`."""

from dataclasses import dataclass

from hardbench.config import Config as AnyConfig
from hardbench.declaration import setting


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of `hardbench compare`."""

    runs: tuple[str, ...] = setting((), "Runs: ids, unique prefixes, or last; default: all finished ones.", position=True, also=("run",))
    study: str | None = setting(None, "Only runs of this study.")
    metric: tuple[str, ...] = setting((), "Metrics to show; default: the final ones.")
    sort: str | None = setting(None, "Metric or setting to sort by, the largest first; -NAME for the smallest.")
    csv: str | None = setting(None, "File that gets the table, all digits.", stored=False)
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)
