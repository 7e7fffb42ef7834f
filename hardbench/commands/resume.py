"""Go on with a run that was interrupted, where its last checkpoint was written.

The same MLflow run continues and ends with the numbers of an uninterrupted one, bit for bit.
"""

import importlib

from hardbench import tracking
from hardbench.configs.resume import Config
from hardbench.studies import simulate


def run(config: Config) -> None:
    """Resume an unfinished run; TrackingError if it is finished, or if its process is alive."""
    stored = tracking.find(config.run, tracking.RESUMED, finished=False)
    tracking.check_idle(stored)
    changed: dict[str, object] = {"data_dir": config.data_dir}
    changed |= {"device": config.device} if config.device != "auto" else {}
    changed |= {"threads": config.threads} if config.threads else {}
    study = "simulate" if simulate.WANTED in stored.tags else stored.study.replace("-", "_")
    importlib.import_module(f"hardbench.studies.{study}").resume(stored, changed, config.out)
