"""Draw figures of stored runs, without training.

Everything drawn comes from the store. Figures of one run go into its figures/, and into --out as well. Those of several runs touch none
of them: they go into --out, or else into a folder here that is named after the runs.
"""

from collections.abc import Sequence
from pathlib import Path

from hardbench import console, files, tracking
from hardbench.configs.plot import Config
from hardbench.errors import ConfigError
from hardbench.figures import draw, folder_name, has_figures, show
from hardbench.figures.runs import FigureOptions
from hardbench.lifecycle import out_folder
from hardbench.stored import StoredRun


def run(config: Config) -> None:
    """Draw the kinds asked for and list the files."""
    target = out_folder(config.out)
    studies = [study for study in tracking.STUDIES if has_figures(study)]
    runs = [tracking.find(word, studies, finished=True if word == "last" else None) for word in config.runs]
    runs = list({run.id: run for run in runs}.values())
    if len({run.study for run in runs}) > 1:
        raise ConfigError(f"runs: of {', '.join(run.study for run in runs)}; runs of one study")
    kinds = None if "all" in config.kind else [kind.replace("-", "_") for kind in config.kind]
    options = FigureOptions(config.metric, config.layer, config.phase, _two(config.by), config.format)
    if len(runs) > 1:
        folder = target or out_folder(folder_name(runs))
        assert folder is not None
        names, link = draw(runs, folder, kinds, options), ""
    else:
        folder, names, link = _into(runs[0], target, kinds, options)
    for line in (*(str((target or folder) / name) for name in names), *(f"run {run.id}" for run in runs)):
        console.say(line)
    if link:
        console.say(f"hardbench ui shows it at {link}")
    if config.show:
        show(folder, [name for name in names if name.endswith(".png")])


def _into(stored: StoredRun, target: Path | None, kinds: Sequence[str] | None, options: FigureOptions) -> tuple[Path, list[str], str]:
    """Draw a run's figures into its artifacts, with copies in `target`; their folder, their names, the run's address."""
    with tracking.extend(stored) as open_run:
        folder = open_run.folder / "figures"
        names = draw([stored], folder, kinds, options)
        for name in names:
            open_run.publish(f"figures/{name}")
            if target is not None:
                files.copy(folder / name, target / name)
    return folder, names, open_run.link


def _two(names: tuple[str, ...] | None) -> tuple[str, str] | None:
    if names is None:
        return None
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(f"by: {','.join(names)}; two settings, columns before rows")
    return names[0].replace("-", "_"), names[1].replace("-", "_")
