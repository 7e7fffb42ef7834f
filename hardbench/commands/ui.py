"""Open MLflow's UI on the store, with links that lead past its start page."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

from hardbench import console, signals, tracking
from hardbench.configs.ui import Config
from hardbench.errors import TrackingError

GUARD = "trap '' TERM; read -r _; kill -TERM 0; sleep 5; kill -KILL 0"


def run(config: Config) -> None:
    """Serve until interrupted; TrackingError if the port is taken, or if the server ends by itself."""
    _free(config.port)
    base = f"http://127.0.0.1:{config.port}/#"
    runs = tracking.runs()
    experiments = {run.run.info.experiment_id: run.study for run in reversed(runs)}
    for experiment, study in experiments.items():
        console.say(f"{study}: {base}/experiments/{experiment}/runs?compareRunsMode=CHART")
    if len(runs) > 1:
        ids = ",".join(f'"{run.id}"' for run in runs[:2])
        places = ",".join(sorted({f'"{run.run.info.experiment_id}"' for run in runs[:2]}))
        console.say(f"the two newest runs side by side: {base}/compare-runs?runs={quote(f'[{ids}]')}&experiments={quote(f'[{places}]')}")
    words = ["--backend-store-uri", tracking.uri(), "--host", "127.0.0.1", "--port", str(config.port), "--workers", "1"]
    # of MLflow's helpers that run jobs none is needed
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with signals.ending(), _guarded() as group:
        server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *words], process_group=group, env=environment)
        try:
            code = server.wait()
        finally:
            os.killpg(group, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)
    raise TrackingError(f"ui: the server ended by itself with code {code}; is port {config.port} free?")


def _free(port: int) -> None:
    """TrackingError unless the port can be listened on, so that no link leads to somebody else's store."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise TrackingError(f"port: {port}; one that is free ({os.strerror(error.errno or 0)})") from None


@contextlib.contextmanager
def _guarded() -> Iterator[int]:
    """A process group whose members end with the block, or with this process, however that ends.

    Its first member reads from a pipe that only this process can write to: the pipe's end is the end of all, SIGKILL or not.
    """
    with subprocess.Popen(["sh", "-c", GUARD], stdin=subprocess.PIPE, process_group=0) as guard:
        try:
            yield guard.pid
        finally:
            os.killpg(guard.pid, signal.SIGKILL)
