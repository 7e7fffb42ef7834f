"""Settings of `hardbench plot`."""

from dataclasses import dataclass

from hardbench.config import Config as AnyConfig
from hardbench.declaration import setting


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of `hardbench plot`."""

    runs: tuple[str, ...] = setting(
        ("last",), "Runs: ids, unique prefixes, or last.", position=True, also=("run",), was=("run_dir", "run_dirs")
    )
    kind: tuple[str, ...] = setting(("all",), "Kinds of figures, or all that apply.")
    metric: str | None = setting(None, "Metric to draw; default: the figure's own.")
    layer: int | None = setting(None, "Layer to draw, counted from 0 at the input side.", low=0)
    phase: str | None = setting(None, "Phase to draw.", choices=("train", "val", "test"))
    by: tuple[str, ...] | None = setting(None, "Two settings of a sweep that its grid is drawn over: columns, rows.")
    format: tuple[str, ...] = setting(("png",), "Formats of the files.", choices=("png", "svg", "pdf"))
    out: str | None = setting(None, "Folder that gets the figures; default for several runs: figures-RUN-RUN.", stored=False)
    show: bool = setting(False, "Open a window per figure.")
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)
