"""Go on with a run that was interrupted, where its last checkpoint was written.

The same MLflow run continues and ends with the numbers of an uninterrupted one, bit for bit.
"""

from collections.abc import Callable
from typing import Any

from hardbench import tracking
from hardbench.configs.resume import Config
from hardbench.studies import invert, mask_mi, simulate, stragglers, sweep, train

STUDIES: dict[str, Callable[..., Any]] = {
    "train": train.resume,
    "sweep": sweep.resume,
    "mask-mi": mask_mi.resume,
    "invert": invert.resume,
    "stragglers": stragglers.resume,
}


def run(config: Config) -> None:
    """Resume an unfinished run; TrackingError if it is finished, or if its process is alive."""
    stored = tracking.find(config.run, list(STUDIES), finished=False)
    tracking.check_idle(stored)
    changed: dict[str, object] = {"data_dir": config.data_dir}
    changed |= {"device": config.device} if config.device != "auto" else {}
    changed |= {"threads": config.threads} if config.threads else {}
    again = simulate.resume if simulate.WANTED in stored.tags else STUDIES[stored.study]
    again(stored, changed, config.out)
