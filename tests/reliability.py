"""Kill every study many times and write down what was lost: `python tests/reliability.py run FOLDER`, then `report FOLDER`.

`run FOLDER [--kills 200] [--case NAME]... [--part 1/2]` adds a line per kill to FOLDER/kills.jsonl and leaves out those that stand there
already, so that it can be stopped and started again, and several parts can run at once. `report` writes docs/reliability.md from it.
"""

import argparse
import fcntl
import json
import platform
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kills import CASES, DRAWN, TWICE, Bench, Warm, moments

LINES, BESIDE = "kills.jsonl", "surroundings.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
Line = dict[str, Any]


def read(folder: Path, name: str = LINES) -> list[Line]:
    """All lines of a file of the folder so far, those of the kills or others."""
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def campaign(folder: Path, wanted: Mapping[str, int], seed: int = 0) -> None:
    """Kill each of the cases as often as wanted, but for the kills that are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    about = versions()
    with tempfile.TemporaryDirectory(prefix="hardbench-kills-") as scratch, Warm(Path(scratch) / "warm") as warm:
        for name, kills in wanted.items():
            done = {line["n"] for line in read(folder) if line["case"] == name}
            if len(done) >= kills:
                continue
            with Bench(name, Path(scratch) / "bench", warm) as bench:
                for n, moment in moments(bench.events, bench.case, kills, seed).items():
                    if n not in done:
                        line = bench.kill(n, moment) | {"date": time.strftime("%Y-%m-%d"), "versions": about}
                        with (folder / LINES).open("a") as file:
                            fcntl.flock(file, fcntl.LOCK_EX)
                            file.write(json.dumps(line) + "\n")


def versions() -> str:
    """What ran."""
    found = [f"{name} {version(name)}" for name in ("hardbench", "torch", "mlflow", "sqlalchemy")]
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=PAGE.parents[1])
    return ", ".join([*found, f"Python {platform.python_version()}", f"revision {asked.stdout.strip() or 'unknown'}"])


ABOUT = f"""\
Each is a SIGKILL at one event of a command: just before or just after a file is opened for writing, before a rename, a removal, a folder
made or removed, an fsync, an SQL statement that writes, a commit, a request to a server or (where said) a step of the optimizer. Then came
`hardbench resume last`, or the same command again where there was nothing to resume; every second time `hardbench compare` came first,
after which no run may be RUNNING. All that is in the project was then held against an undisturbed run's: arrays and checkpoints bit for
bit, tables and JSON, the names of all other files, params, tags, inputs, states, every point of every metric once (of samples_per_second
only that it is there). *Lost* is a kill after which any of that differed; of a run that had nothing yet only its KILLED entry may stay.
Up to one in {TWICE} of the commands that went on were killed at a random event, too, and went on again; how many, says the next line.
Figures are compared by name: after one kill in {DRAWN} at least they were drawn, else blank files were written in their place.
""".splitlines()


def page(lines: list[Line]) -> str:
    """docs/reliability.md."""
    lines = [line for line in lines if line["how"] != "undisturbed"]  # had fewer events than the first time
    bad = [line for line in lines if line["problems"]]
    dates = sorted({line["date"] for line in lines})
    revisions: dict[str, list[str]] = {}
    for about, _, revision in (line["versions"].partition(", revision ") for line in lines):
        revisions.setdefault(about, []).append(revision)
    ran = [f"{about}, revisions {', '.join(dict.fromkeys(filter(None, own)))}" for about, own in revisions.items()]
    text = [
        "# Reliability",
        "",
        "Written by `python tests/reliability.py report FOLDER` from the kills of its last campaign; not by hand.",
        "",
        f"{len(lines)} kills, {' to '.join(dict.fromkeys((dates[0], dates[-1])))} ({'; '.join(ran)}).",
        "",
        *ABOUT,
        "",
        f"**{len(bad)} of {len(lines)} lost something;** {sum(1 for line in lines if line.get('second'))} of them were killed twice.",
        "",
        "| case | command | events | kills | resumed | again | was finished | lost | seconds a kill |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        own = [line for line in lines if line["case"] == name]
        if not own:
            continue
        how = Counter(line["how"] for line in own)
        other = how["same command again"] + how["went on by itself"]
        wrong = sum(1 for line in own if line["problems"])
        seconds = sum(line["seconds"] for line in own) / len(own)
        cells = [name, f"`{case.words}`", own[-1]["of"], len(own), how["resumed"], other, how["was finished"], wrong, f"{seconds:.1f}"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    text += ["", "## Where", "", "| case | " + " | ".join(KINDS) + " |", "|---|" + "---|" * len(KINDS)]
    for name in CASES:
        kinds = Counter(line["kind"] for line in lines if line["case"] == name)
        if kinds:
            text.append(f"| {name} | " + " | ".join(str(kinds[kind] or "") for kind in KINDS) + " |")
    left = [name for name in CASES if not any(line["case"] == name for line in lines)]
    if left:
        text += ["", f"Not tried in this campaign: {', '.join(left)}."]
    if bad:
        text += ["", "## Lost", ""]
        text += [f"- {line['case']}, event {line['n']} ({line['kind']} {line['where']}): {'; '.join(line['problems'][:3])}" for line in bad]
    return "\n".join([*text, ""])


def surroundings(lines: list[Line]) -> str:
    """The page's part on hostile surroundings: tries by case, and the last outcome of each kind of try."""
    last = {(line["case"], line["detail"]): line["outcome"] for line in lines}
    text = ["", "## Surroundings", "", "Full disks, closed folders, locked stores, closed terminals, several processes on one run:"]
    text += ["`HARDBENCH_RELIABILITY=FOLDER/surroundings.jsonl pytest -m slow tests/test_surroundings.py tests/test_together.py`.", ""]
    text += ["| case | tries | kinds of try | held at the last try |", "|---|---|---|---|"]
    for case, tries in Counter(line["case"] for line in lines).items():
        own = [outcome for (name, _), outcome in last.items() if name == case]
        text.append(f"| {case} | {tries} | {len(own)} | {sum(outcome in ('held', 'exit 0', 'exit 5') for outcome in own)} |")
    return "\n".join([*text, ""])


KINDS = ("open", "opened", "rename", "remove", "mkdir", "rmdir", "fsync", "connect", "sql", "commit", "send", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=("run", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--part", default="1/1")
    given = parser.parse_args()
    if given.do == "run":
        first, _, of = given.part.partition("/")
        campaign(given.folder, dict.fromkeys(list(given.case or CASES)[int(first) - 1 :: int(of)], given.kills))
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(read(given.folder)) + (surroundings(beside) if (beside := read(given.folder, BESIDE)) else ""))


if __name__ == "__main__":
    main()
