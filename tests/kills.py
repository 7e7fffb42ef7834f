"""Kill a command at one of its events, go on as its user would, and hold what is there against an undisturbed run.

A case is a command line in a project that has been made ready for it. Its bench runs it once undisturbed, which lists the events; then as
often as wanted with a kill at one of them. The project is always the same folder, put back to its beginning before every kill, on the
default store: runs know their files by full paths.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ledger import Ledger, lost

HERE = Path(__file__).parent
VICTIM = str(HERE / "victim.py")
DATABASE = ("sql", "commit", "connect", "send")
UNKNOWN = 5  # exit code: there is no such run
TWICE = 3  # after every so many kills the command that goes on is killed, too
NEAR = 20  # events that it has more than were left: what it finds and opens
DRAWN = 10  # after every so many kills figures are drawn; else their files are blank, which is half as much work
Event = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A command, what has to be there before it, and how its user goes on: `resume last`, or the same command again."""

    words: str
    before: tuple[str, ...] = ("compare",)  # makes the store; without any the command makes it
    resumes: bool = True
    remote: bool = False
    worker: bool = False  # not the command but a worker of it is killed: the command itself goes on
    steps: bool = False  # steps of the optimizer are events, too
    often: str = ""  # module:NAME of the seconds between two of something, which are none here
    known: tuple[Event, ...] = ()  # moments, by kind and part of what, at which something was once lost: these always come first
    among: Callable[[Sequence[Event]], Sequence[int]] = field(default=lambda events: range(1, len(events) + 1))


def between_checkpoints(events: Sequence[Event]) -> Sequence[int]:
    """Events after the first checkpoint and before the second."""
    first, second, *_ = (n for n, (kind, what) in enumerate(events, start=1) if kind == "rename" and what.endswith(".last.pt.part"))
    return range(first + 1, second)


NETWORK = "--subset-size 300 --threads 1 --width 16"
TRAIN = f"{NETWORK} --epochs 2 --repeats 2 --eval-points 3 --log-every 2 --layer-metrics probe_accuracy"
SEARCH = "--dataset digits --subset-size 300 --threads 1 --repeats 2"
CASES = {
    "train": Case(f"train {TRAIN} --checkpoint-every 0", known=(("opened", "figures/"),)),
    "train, default checkpoints": Case(
        f"train {NETWORK} --epochs 12 --batch-size 16 --repeats 2 --log-every 4 --layer-metrics none",
        steps=True,
        often="hardbench.written:SECONDS",
        known=(("step", ""),),  # the newest checkpoint is step 0's
        among=between_checkpoints,
    ),
    "train in an empty folder": Case(f"train {TRAIN}", before=()),
    "train --record-dynamics": Case(
        f"train {TRAIN} --record-dynamics --checkpoint-every 0", known=(("rmdir", "dynamics"), ("remove", "dynamics/"))
    ),
    "train --log-model": Case(f"train {TRAIN} --log-model", known=(("opened", "figures/"), ("sql", "UPDATE logged_models"))),
    "train --keep-checkpoints false": Case(f"train {TRAIN} --keep-checkpoints false --checkpoint-every 0"),
    "train on a server": Case(f"train {TRAIN} --checkpoint-every 0", before=(), remote=True),
    "simulate": Case(f"simulate {TRAIN}", known=(("opened", "test_results.json"),)),
    "simulate --keep-checkpoints false": Case(f"simulate {TRAIN} --keep-checkpoints false"),
    "eval": Case("eval last --threads 1 --corruption-p 0,0.2", before=(f"train {TRAIN}",), resumes=False),
    "plot": Case("plot last", before=(f"train {TRAIN}",), resumes=False),
    "sweep train": Case(f"sweep train {NETWORK} --corruption-p 0,0.3 --epochs 1 --repeats 2 --workers 1", resumes=False),
    "sweep invert": Case(f"sweep invert {SEARCH} --lr 0.4,0.5 --epochs 8 --workers 1", resumes=False),
    "sweep invert, a worker": Case(f"sweep invert {SEARCH} --lr 0.4,0.5 --epochs 8 --workers 1", resumes=False, worker=True),
    "mask-mi": Case(
        "mask-mi last --threads 1 --n-subsets 6 --images 60 --pairs 2",
        before=("train --model cnn --width 4 --subset-size 300 --epochs 1 --repeats 2 --threads 1",),
        often="hardbench.studies.mask_mi:SAVE_SECONDS",
        known=(("open", "last.pt"),),
    ),
    "invert": Case(
        f"invert {SEARCH} --epochs 30 --lr 0.4 --stability --retrain-without-stragglers --prune-curve --prune-points 2"
        " --checkpoint-every 0",
        known=(("opened", "prune_curve"),),
    ),
    "invert --log-model": Case(
        f"invert {SEARCH} --epochs 12 --lr 0.4 --log-model --prune-curve --prune-points 2", known=(("opened", "prune_curve"),)
    ),
    "stragglers": Case(
        f"stragglers {SEARCH} --epochs 20 --lr 0.5 --train-ratios 0.8 --remaining-train-ratios 0.5,1 --strategy stragglers,loss"
    ),
    "score": Case(
        "score last --threads 1 --score aum,loss,random --format csv,jsonl",
        before=(f"train {TRAIN} --record-dynamics --plant mislabel:0.1",),
        known=(("opened", "scores.csv"),),
    ),
}


def spread(events: Sequence[Event], among: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """`count` of the events `among`, half of them of files and half of the database, evenly over each, at a random place in every part."""
    if count >= len(among):
        return list(among)
    rng, chosen = random.Random(seed), []
    files = [n for n in among if events[n - 1][0] not in DATABASE]
    others = [n for n in among if events[n - 1][0] in DATABASE]
    share = max(count - len(others), min(len(files), (count + 1) // 2))
    for group, number in ((files, share), (others, count - share)):
        edges = [round(place * len(group) / max(1, number)) for place in range(number + 1)]
        chosen += [rng.choice(group[start:stop]) for start, stop in pairwise(edges)]
    return sorted(chosen)


def moments(events: Sequence[Event], case: Case, count: int, seed: int = 0) -> dict[int, Event | None]:
    """`count` events of a case to be killed at: the first of each that it knows, then a spread of the rest in a random order."""
    among = case.among(events)
    found = [next(n for n in among if events[n - 1][0] == kind and part in events[n - 1][1]) for kind, part in case.known[:count]]
    rest = [n for n in among if n not in found]
    others = spread(events, rest, min(len(rest), count - len(found)), seed)
    random.Random(seed).shuffle(others)  # a campaign that is stopped early has been everywhere
    return dict(zip(found, case.known, strict=False)) | dict.fromkeys(others)


class Warm:
    """A process whose forks run what they are told (see victim.py)."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_"))}
        clean |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        clean |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
        with (folder / "warm.log").open("wb") as log:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen([sys.executable, VICTIM], stdin=pipe, stdout=pipe, stderr=log, env=clean, text=True)

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, do: str, **job: Any) -> dict[str, Any]:
        """The answer to a job: exit status and CPU seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **job}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, (self.folder / "warm.log").read_text()[-2000:]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def imports(self, do: str, **job: Any) -> dict[str, Any]:
        """The same; afterwards the process has what the job had to import."""
        modules = self.folder / "modules.json"
        answer = self(do, modules=str(modules), **job)
        if modules.exists():
            self("warm", modules=str(modules))
        return answer


class Bench:
    """A case at work in a folder of its own."""

    def __init__(self, name: str, folder: Path, warm: Warm):
        self.name, self.case, self.warm, self.folder = name, CASES[name], warm, folder
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("ready", "tmp"):
            (folder / part).mkdir(parents=True)
        self.project, self.log, self.cpu, self.blank = folder / "project", folder / "log", 0.0, False
        self.second = ""  # event at which the command that went on was killed, too
        self.env = {"TMPDIR": str(folder / "tmp")}
        self.server = self._serve() if self.case.remote else None
        self.whole, self.events = self._undisturbed()

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGKILL)  # with its workers
            self.server.wait()

    def _serve(self) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["mlflow", "server", "--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "kept", "--workers", "1"]
        (self.folder / "server").mkdir()
        with (self.folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", *words, "--port", str(port)],
                cwd=self.folder / "server",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(self.env["MLFLOW_TRACKING_URI"] + "/health", timeout=5)
                return server
            except OSError:
                time.sleep(0.2)
        server.kill()
        raise AssertionError((self.folder / "server.log").read_text()[-2000:])

    def _do(self, do: str, first: bool = False, **job: Any) -> int:
        ask = self.warm.imports if first else self.warm
        answer = ask(do, **{"folder": str(self.project), "log": str(self.log), "env": self.env, **job})
        self.cpu += answer["cpu"]
        return int(answer["status"])

    def run(self, words: str, journal: Path | None = None, at: int = 0, **more: Any) -> int:
        """The exit status of a command line; with a journal its events are counted, and number `at` is its last."""
        more = {"blank": self.blank} | more
        if journal is not None:
            journal.unlink(missing_ok=True)
            watching = {"journal": str(journal), "at": at, "watch": [str(self.project), str(self.folder / "tmp")]}
            if self.case.worker:
                more["env"] = self.env | {"VICTIM_WORKER": json.dumps(watching)}
            else:
                more |= {**watching, "steps": self.case.steps}
        return self._do("command", words=words.split(), often=self.case.often, **more)

    def look(self, clean: bool = False, **more: Any) -> Ledger:
        """All that is in the project."""
        result = self.folder / "look.json"
        status = self._do("look", result=str(result), clean=clean, **more)
        assert status == 0, self.log.read_text()[-3000:]
        found: Ledger = json.loads(result.read_text())
        return found

    def _undisturbed(self) -> tuple[Ledger, list[Event]]:
        journal = self.folder / "events.txt"
        self.project.mkdir()
        for words in self.case.before:
            assert self.run(words, first=True) in (0, UNKNOWN), self.log.read_text()[-3000:]
        self.project.rename(self.folder / "ready")
        self._put_back()
        assert self.run(self.case.words, journal, first=True) == 0, self.log.read_text()[-3000:]
        events = [tuple(line.split("\t", 1)) for line in journal.read_text().splitlines()]
        self.run("compare", first=True)
        assert self.run("resume last", first=True) == UNKNOWN, self.log.read_text()[-3000:]  # it is finished; and its imports are made
        whole = self.look(first=True)
        assert not whole["left"] and whole["runs"], whole["left"]
        return whole, events  # type: ignore[return-value]

    def _put_back(self) -> None:
        if self.case.remote and self.project.exists():
            self.look(clean=True)
        for path in (self.project, self.folder / "tmp"):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / "tmp").mkdir()
        shutil.copytree(self.folder / "ready", self.project)

    def kill(self, n: int, moment: Event | None = None) -> dict[str, Any]:
        """What became of a command killed at its n-th event (at the moment near it), and of its user's next command: a campaign's line."""
        began, journal, self.cpu, self.blank = time.monotonic(), self.folder / "event.txt", 0.0, bool(n % DRAWN)
        self._put_back()
        self.log.unlink(missing_ok=True)
        self.second = ""
        status = self.run(self.case.words, journal, n, moment=moment)
        written = journal.read_text().rstrip("\n") if journal.exists() else ""
        kind, _, what = written.partition("\t")
        where = what.replace(f"{self.project}/", "")
        problems, how, temporary = [], "undisturbed", self._temporary() if status == -9 else set()
        if self.case.worker:
            how, found = "went on by itself", self.look()
            problems += [f"exit {status}"] if status else []
        elif status == -9:
            how, found, problems = self._go_on(n)
        else:
            found = self.look()
            problems += [f"exit {status} without a kill"] if status else []
        problems += [f"temporary folder: {name} left" for name in sorted(self._temporary() - temporary)]
        problems += lost(found, self.whole, again=self.case.words.startswith("eval"))
        line = {"case": self.name, "n": n, "of": len(self.events), "kind": kind, "where": where, "how": how, "problems": problems[:12]}
        line |= {"second": self.second, "seconds": round(time.monotonic() - began, 2), "cpu": round(self.cpu, 2)}
        return line | {"log": self._said()[-3000:] if problems else ""}

    def _said(self) -> str:
        """What the commands printed, without what a library of the warm process says at its end."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith(("nanobind:", " - ", "See https://nanobind")))

    def _temporary(self) -> set[str]:
        """What of ours lies in the temporary folder; a killed command may leave something there, one that ends may not."""
        return {path.name for path in (self.folder / "tmp").iterdir() if not path.name.startswith("torchinductor")}

    def _go_on(self, n: int) -> tuple[str, Ledger, list[str]]:
        """How the command's work was brought to its end, what is there then, and what went wrong on the way."""
        problems = []
        if n % 2:  # any command of hardbench finds out that the process is gone; every second time it is the one that goes on
            problems += [f"compare: exit {code}" for code in [self.run("compare")] if code not in (0, UNKNOWN)]
            stuck = [one["study"] for one in self.look()["left"] if one["status"] == "RUNNING"]
            problems += [f"a run of {study} is RUNNING after the next command" for study in stuck]
        if self.case.resumes:
            code = self._again("resume last", n)
            if code == 0:
                return "resumed", self.look(), problems
            if code != UNKNOWN:
                return "resume failed", self.look(), [*problems, f"resume: exit {code}"]
            found = self.look()
            if found["runs"].keys() == self.whole["runs"].keys():
                return "was finished", found, problems
        problems += [f"the same command again: exit {code}" for code in [self._again(self.case.words, n)] if code]
        return "same command again", self.look(), problems

    def _again(self, words: str, n: int) -> int:
        """The exit status of a command that goes on, after every third kill not before it was killed, too."""
        if n % TWICE == 0:
            journal = self.folder / "second.txt"
            status = self.run(words, journal, random.Random(n).randrange(1, max(2, len(self.events) - n + NEAR)))
            if status != -9:
                return status
            self.second = journal.read_text().rstrip("\n").replace(f"{self.project}/", "")
            if self.case.resumes:
                code = self.run("resume last")
                if code != UNKNOWN or self.look()["runs"].keys() == self.whole["runs"].keys():
                    return 0 if code == UNKNOWN else code  # it was finished when it was killed
                words = self.case.words
        return self.run(words)
