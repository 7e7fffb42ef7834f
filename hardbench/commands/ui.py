"""Open MLflow's UI on the store, with links that lead past its start page."""

import subprocess
import sys
from dataclasses import dataclass
from urllib.parse import quote

from hardbench import console, tracking
from hardbench.config import Config as AnyConfig
from hardbench.config import setting
from hardbench.errors import TrackingError


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of `hardbench ui`."""

    port: int = setting(5000, "Port on 127.0.0.1.", low=1, high=65535)
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)


def run(config: Config) -> None:
    """Serve until interrupted; TrackingError if the server ends by itself."""
    base = f"http://127.0.0.1:{config.port}/#"
    found = tracking.runs()
    experiments = {one.run.info.experiment_id: one.study for one in reversed(found)}
    for experiment, study in experiments.items():
        console.say(f"{study}: {base}/experiments/{experiment}/runs?compareRunsMode=CHART")
    if len(found) > 1:
        newest = found[:2]
        ids = ",".join(f'"{one.id}"' for one in newest)
        places = ",".join(sorted({f'"{one.run.info.experiment_id}"' for one in newest}))
        console.say(f"the two newest runs side by side: {base}/compare-runs?runs={quote(f'[{ids}]')}&experiments={quote(f'[{places}]')}")
    words = ["--backend-store-uri", tracking.uri(), "--host", "127.0.0.1", "--port", str(config.port), "--workers", "1"]
    ended = subprocess.run([sys.executable, "-m", "mlflow", "server", *words], check=False)
    if ended.returncode:
        raise TrackingError(f"ui: the server ended with code {ended.returncode}; is port {config.port} free?")
