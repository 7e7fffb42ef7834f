"""Open MLflow's UI on the store, with links that lead past its start page."""

import contextlib
import os
import signal
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
    # of MLflow's helpers that run jobs none is needed; in a process group of its own the server leaves nothing behind
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tracking.terminable():
        server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *words], process_group=0, env=environment)
        try:
            code = server.wait()
        finally:
            _end(server)
    if code:
        raise TrackingError(f"ui: the server ended with code {code}; is port {config.port} free?")


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and all it started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, number)
            server.wait(5)
