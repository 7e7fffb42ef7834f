"""Executors: the same jobs in local processes or on a Ray cluster; who dies takes down its own jobs only, and they are tried again."""

import logging
import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from hardbench.campaign.jobs import Job
from hardbench.campaign.worker import PINNED, attempt, serve
from hardbench.errors import ConfigError


@dataclass(frozen=True)
class Result:
    """The end of a job: its value, or the error."""

    job: Job
    value: Any = None
    error: str | None = None


Results = Generator[Result, Sequence[Job] | None, None]
Started = Callable[[Sequence[Job]], None]


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Local:
    """Spawned processes on this machine, one thread each. A job whose process dies is tried up to `tries` times."""

    def __init__(self, workers: int, tries: int, gpus: int = 0):
        self.workers, self.tries, self.gpus = workers, tries, gpus

    def run(self, jobs: Sequence[Job], started: Started) -> Results:
        """Results in any order, as they come; jobs sent into the generator are run as well. `started` hears what is being worked on."""
        queue, tried = deque(jobs), dict[int, int]()
        workers: list[_Worker] = []
        try:
            while queue or any(worker.job for worker in workers):
                while len(workers) < min(self.workers, len(queue) + sum(1 for worker in workers if worker.job)):
                    workers.append(self._hire(len(workers)))
                if self._hand_out(queue, workers):
                    started([worker.job for worker in workers if worker.job])
                busy = {worker.pipe: place for place, worker in enumerate(workers) if worker.job}
                for pipe in connection.wait(list(busy)):
                    place = busy[cast(Connection, pipe)]
                    job, workers[place].job = cast(Job, workers[place].job), None
                    try:
                        result = Result(job, *workers[place].pipe.recv())
                    except (EOFError, OSError):  # it has died
                        workers[place].end()
                        workers[place] = self._hire(place)
                        tried[id(job)] = tried.get(id(job), 0) + 1
                        if tried[id(job)] < self.tries:
                            queue.appendleft(job)
                            continue
                        result = Result(job, error=f"WorkerLost: its process died {self.tries} times")
                    queue.extend((yield result) or ())
        finally:
            for worker in workers:
                worker.end()

    def _hire(self, place: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs,), daemon=False)
        with _environment({**PINNED, **({"CUDA_VISIBLE_DEVICES": str(place % self.gpus)} if self.gpus else {})}):
            process.start()
        theirs.close()
        return _Worker(process, ours)

    @staticmethod
    def _hand_out(queue: deque[Job], workers: Sequence[_Worker]) -> bool:
        """True if anyone got a job. One that cannot be handed over has a dead worker, whose pipe will say so."""
        handed = False
        for worker in workers:
            if worker.job is None and queue:
                worker.job, handed = queue.popleft(), True
                try:
                    worker.pipe.send((worker.job.call, worker.job.payload))
                except OSError:
                    worker.process.kill()
        return handed


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within the block processes start with these variables: threads are pinned before torch is imported."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)


class Ray:
    """Tasks on an existing Ray cluster."""

    def __init__(self, address: str, tries: int, cpus: float, gpus: float):
        try:
            import ray
        except ImportError:
            raise ConfigError("executor: ray; the extra is not installed: pip install 'hardbench[ray]'") from None
        self.ray, self.tries, self.resources = ray, tries, {"num_cpus": cpus, "num_gpus": gpus}
        try:
            server = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
            if ":" in server:  # where nothing answers Ray itself would wait for minutes
                host, _, port = server.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # whatever Ray raises where there is no cluster
            why = " ".join(str(error).split())[:150]
            raise ConfigError(f"ray_address: {address}; a running cluster (ray start --head), as HOST:PORT or auto ({why})") from None

    def run(self, jobs: Sequence[Job], started: Started) -> Results:
        """As `Local` does. Ray itself tries nothing twice: what was lost is counted here."""
        ray = self.ray
        task = ray.remote(max_retries=0, **self.resources)(_pinned)
        pending = {task.remote(job.call, job.payload): (job, 1) for job in jobs}
        started([job for job, _ in pending.values()])
        try:
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
                for reference in done:
                    job, tries = pending.pop(reference)
                    try:
                        result = Result(job, *ray.get(reference))
                    except ray.exceptions.RayError as error:
                        if tries < self.tries:
                            pending[task.remote(job.call, job.payload)] = job, tries + 1
                            continue
                        result = Result(job, error=f"WorkerLost: tried {tries} times ({type(error).__name__})")
                    pending |= {task.remote(job.call, job.payload): (job, 1) for job in (yield result) or ()}
                    started([job for job, _ in pending.values()])
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)
            ray.shutdown()


def _pinned(call: str, payload: Any) -> tuple[Any, str | None]:
    os.environ.update(PINNED)
    return attempt(call, payload)


Executor = Local | Ray
