"""Go on with a run that was interrupted, where its last checkpoint was written.

The same MLflow run continues and ends with the numbers of an uninterrupted one, bit for bit.
"""

import importlib

from hardbench import lifecycle, tracking
from hardbench.configs.resume import Config
from hardbench.configs.sweep import STUDIES, sweep_class
from hardbench.errors import TrackingError
from hardbench.stored import SIMULATION


def run(config: Config) -> None:
    """Resume an unfinished run; TrackingError if it is finished, or if its process is alive."""
    stored = tracking.find(config.run, tracking.RESUMED, finished=False)
    tracking.check_idle(stored)
    changed: dict[str, object] = {"data_dir": config.data_dir, "out": config.out}
    changed |= {"device": config.device} if config.device != "auto" else {}
    changed |= {"threads": config.threads} if config.threads else {}
    name = "simulate" if SIMULATION in stored.tags else stored.study
    study = importlib.import_module(f"hardbench.studies.{name.replace('-', '_')}")
    settings = study.Config
    if name == "sweep":
        if stored.config.get("study") not in STUDIES:
            raise TrackingError(f"run: {stored.id}; its config.yaml names no study")
        settings = sweep_class(stored.config["study"])
    lifecycle.launch(study, stored.settings(settings, changed), stored)
