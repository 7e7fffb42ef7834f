"""The life of a study: prepare, open a run or go on with one, compute, draw, report; and the one memory of what is done."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from hardbench import console, figures, files, machine, tracking
from hardbench.artifacts import BEST, CHECKPOINTS, LAST
from hardbench.errors import ConfigError, HardbenchError, TrackingError, TrainingError
from hardbench.stored import StoredRun
from hardbench.training import checkpoints

State = dict[str, Any]  # of a computation, as a checkpoint keeps it
SPARE = "part-"  # begins the names of parts that are removed when the run ends


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that a bad setting could spoil, built before a run exists; a study subclasses it with what it computes with."""

    config: Any  # the study's Config
    title: str = ""  # the run's name
    note: str = ""  # two lines on it for its reader
    device: torch.device = torch.device("cpu")
    dataset: str = ""
    digest: str = ""  # of the data; without one the tags of the run stay as they are
    sources: tuple[StoredRun, ...] = ()  # runs that it reads
    tags: Mapping[str, str] = field(default_factory=dict)  # further ones of its run
    lists_files: bool = False  # print a table of all files at the end
    other_data: ClassVar[type[HardbenchError]] = TrainingError  # raised where a run would go on with other data

    def preview(self) -> bool:
        """Show what would be done, where the settings ask for that alone; True if they do."""
        return False

    def opening(self, study: str, stored: StoredRun | None) -> AbstractContextManager[tracking.Run]:
        """The run to compute in: a new one of the study, or the stored one to go on with."""
        if stored is not None:
            return tracking.reopen(stored)
        source = {"hardbench.source_run": ",".join(run.id for run in self.sources)} if self.sources else {}
        return tracking.start(study, self.config, self.title, self.note, tags={**(self.config.tag or {}), **source, **self.tags})

    def describe(self, run: tracking.Run) -> None:
        """Tag the run with device, precision and threads, and note the data set; at its start, and again when it goes on."""
        run.data(self.dataset, self.digest)
        for key, value in (("device", self.device), ("precision", self.config.precision), ("threads", torch.get_num_threads())):
            run.tag(f"hardbench.{key}", str(value))

    def copied(self, run: tracking.Run) -> Sequence[str]:
        """Files and folders of the run that `--out` gets."""
        return (".",)


class Stages:
    """The one memory of what a run has done, for a run that goes on: states under way, and parts that are done, in its checkpoints/.

    All of it is written whole or not at all, and what only going on needs is removed when the run ends.
    """

    def __init__(self, run: tracking.Run, resumed: bool):
        self.resumed = resumed
        self._run = run
        self._folder = run.folder / CHECKPOINTS
        self._spare: list[str] = []  # files that a run which has ended does without
        self._parts: list[str] = []  # parts that stay where checkpoints are kept
        self._used = False  # an evaluation keeps nothing here, and must remove nothing of the run it adds to

    def _fetch(self) -> None:
        """The folder as the store has it, once, for a run that goes on."""
        if not self._used and self.resumed and (self._folder.is_dir() or not files.is_there(self._folder)):
            self._run.fetch(CHECKPOINTS)
        self._used = True

    def newest(self, wanted: Mapping[str, Any], otherwise: Callable[[], State | None] = lambda: None) -> State | None:
        """The newest state that can be read, with what is wanted in it, else what `otherwise` has; None at a first start.

        A warning if it is not the last that was saved, or if nothing was.
        """
        self._fetch()
        if not self.resumed:
            return None
        state, note = checkpoints.newest(self._folder, wanted)
        state = state or otherwise()
        if note or not (state or any(path.name != BEST for path in self._folder.glob("*.pt"))):
            console.warn(note or f"run {self._run.id} had no checkpoint yet: it starts again from step 0")
        return state

    def save(self, state: State, *others: tuple[str, State]) -> None:
        """Keep the state under way as last.pt, after other checkpoints by file name."""
        self._fetch()
        self._run.close()  # what a checkpoint counts as measured must be in the store
        for name, content in (*others, (LAST, state)):
            checkpoints.save(self._folder, name, content)
        for name in (LAST, *(name for name, _ in others)):
            self._run.publish(f"{CHECKPOINTS}/{name}")

    def once(self, name: str, make: Callable[[], State], spare: bool = False) -> State:
        """A named part: as it is stored, or made now and stored, so that a run that goes on does not compute it again.

        It stays with the checkpoints that are kept, unless it is `spare`. A part has no key `networks`, which every checkpoint has.
        """
        self._fetch()
        path = self._folder / f"{SPARE if spare else ''}{name}.pt"
        if not spare:
            self._parts.append(path.name)
        if path.exists():
            try:
                return {key: value for key, value in checkpoints.load(path).items() if key != "networks"}
            except TrainingError as error:
                console.warn(f"{error}; trained again")
        part = make()
        checkpoints.save(self._folder, path.name, {"networks": [], **part})
        self._run.publish(f"{CHECKPOINTS}/{path.name}")
        return part

    def only_to_resume(self, *names: str) -> None:
        """Files of the run, by their names in its folder, that are removed when it ends."""
        self._spare += names

    def end(self, keep: bool) -> None:
        """Remove what only going on needs; checkpoints and parts stay if they are to be kept.

        In this order: a run that is killed between two of them can still go on.
        """
        names = checkpoints.spare(keep) if self._used else []
        names += [path.name for pattern in (f"{SPARE}*.pt", f".{SPARE}*.pt.part") for path in sorted(self._folder.glob(pattern))]
        names += [f".{name}.part" for name in self._parts] + ([] if keep else self._parts)
        self._run.remove(*dict.fromkeys([*self._spare, *(f"{CHECKPOINTS}/{name}" for name in names)]))


class Study(Protocol):
    """A module of studies/: its settings, and the functions of its life."""

    STUDY: str

    @property
    def FIGURES(self) -> Sequence[str] | None:
        """Kinds of figures drawn at its end; None: all that apply."""

    def prepare(self, config: Any, stored: StoredRun | None = None) -> Prepared:
        """All that can fail before a run exists, from settings or to go on with a stored run."""

    def compute(self, prepared: Any, run: tracking.Run, stages: Stages) -> None:
        """The work, from what the stages have of it on."""

    def report(self, stored: StoredRun) -> None:
        """Print what was measured."""


def launch(study: Study, config: Any, stored: StoredRun | None = None, draw: bool = True) -> StoredRun | None:
    """Do a study in a run of its own, or go on with a stored one that is not finished; the run, None where settings ask for a preview.

    The settings of a stored run are its own but for where it is computed. The run is FINISHED when all steps are done, and not before:
    what a kill leaves undone a resumed run does, and every step may be done again. What only resuming needs is removed last. A
    TrainingError whose study has measured all it could is raised after all of them; after any other error nothing is removed. The copy in
    `out` comes after the end: one that finds no room undoes no run.
    """
    prepared = study.prepare(config, stored)
    if prepared.preview():
        return None
    if stored is not None and stored.tags.get("hardbench.data_digest", prepared.digest) != prepared.digest:
        raise prepared.other_data(f"run: {stored.id}; the data set is not the one it was started on")
    out = out_folder(config.out)
    measured: TrainingError | None = None
    with prepared.opening(study.STUDY, stored) as run:
        if prepared.digest:
            prepared.describe(run)
        stages = Stages(run, stored is not None)
        try:
            study.compute(prepared, run, stages)
        except TrainingError as error:
            if not error.measured:
                raise
            measured = error
        if draw and study.FIGURES != ():
            publish(run, [so_far(run)], study.FIGURES)
        study.report(so_far(run))
        stages.end(getattr(config, "keep_checkpoints", False))
        if measured is not None and not measured.finished:
            finish(run, out, prepared.copied(run))
            raise measured
    finish(run, out, prepared.copied(run))
    if measured is not None:
        raise measured
    if prepared.lists_files:
        _list_files(out or so_far(run).file(""))
    if getattr(config, "show", False):
        figures.show(run.folder / "figures", sorted(path.name for path in (run.folder / "figures").glob("*.png")))
    return so_far(run)


def so_far(run: tracking.Run) -> StoredRun:
    """An open run as the store has it so far."""
    run.deliver()
    return StoredRun(run.client, run.client.get_run(run.id))


def publish(run: tracking.Run, runs: Sequence[StoredRun], kinds: Sequence[str] | None) -> list[str]:
    """Draw the kinds of figures that apply to some runs (None: all there are) into an open run; the names of the files."""
    names = figures.draw(runs, run.folder / "figures", kinds, strict=False)
    for name in names:
        run.publish(f"figures/{name}")
    return names


def out_folder(out: str | None) -> Path | None:
    """The folder of `--out`, made now so that a bad one is known before any work."""
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"out: {out}; a folder that can be written ({error.strerror})") from None
    return Path(out)


def finish(run: tracking.Run, out: Path | None, copied: Sequence[str]) -> None:
    """The closing lines of every command that writes to a run: its id, where its files are, where the UI shows it.

    `copied` (files or folders of the run) go to `out`, unless that is where they are.
    """
    if out is not None:
        if "." in copied:
            run.fetch()
        if out.resolve() != run.folder.resolve():
            _copy(run.folder, out, copied)
    for line in (f"run {run.id}", f"files {out or run.folder}", machine.described(), f"hardbench ui shows it at {run.link}"):
        console.say(line)


def _copy(folder: Path, out: Path, names: Sequence[str]) -> None:
    try:
        for name in names:
            source, copy = folder / name, out / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, copy)
    except OSError as error:  # of a whole folder: a list of (from, to, why)
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise TrackingError(f"out: {out}; a folder that takes a copy of {folder} ({reason})") from None


def _list_files(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    console.table("Files", ["path", "KiB"], [[path.relative_to(folder), f"{path.stat().st_size / 1024:.0f}"] for path in paths])
