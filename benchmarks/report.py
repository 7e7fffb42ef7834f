"""The results for a reader: the table in the terminal, the same as Markdown, and the JSON file."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.row import Outcome

COLUMNS = ("row", "clock", "plain", "hardbench", "ratio", "goal", "of the matrix rate", "peak MiB", "same")


def seconds(values: Sequence[float]) -> str:
    """Median and range."""
    factor, unit = (1, "s") if median(values) >= 1 else (1e3, "ms")
    middle, low, high = (f"{factor * value:.3g}" for value in (median(values), min(values), max(values)))
    return f"{middle} {unit} [{low}-{high}]"


def number(kind: str, value: float) -> str:
    """A value of a goal's kind: 2.9x faster, 52 % of it, 0.06 s."""
    return {"faster": f"{value:.2f}x", "share": f"{100 * value:.3g} %", "seconds": f"{value:.3g} s"}[kind]


def goal(outcome: Outcome) -> str:
    """The bound, and whether it is reached."""
    if outcome.goal is None:
        return ""
    sign = ">=" if outcome.goal["kind"] == "faster" else "<="
    return f"{sign} {number(outcome.goal['kind'], outcome.goal['bound'])} {'met' if outcome.met else 'MISSED'}"


def verdict(outcome: Outcome) -> str:
    """The result of the check that compares both forms, in words."""
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    return f"{'same' if outcome.same else 'DIFFERENT'}: {outcome.check}"


def cells(outcome: Outcome) -> list[str]:
    """One line of the table."""
    clock = f"{outcome.clock}, {outcome.threads} thread{'s' * (outcome.threads > 1)}"
    if outcome.skipped:
        return [outcome.name, clock, *[""] * (len(COLUMNS) - 3), verdict(outcome)]
    kind = (outcome.goal or {}).get("kind", "faster")
    shares = [f"{100 * share:.0f} %" for share in outcome.shares]
    memory = [f"{value:.0f}" for value in (outcome.plain_memory, outcome.ours_memory) if value is not None]
    return [
        outcome.name,
        clock,
        seconds(outcome.plain),
        seconds(outcome.ours),
        number(kind, outcome.value),
        goal(outcome),
        " / ".join(shares),
        " / ".join(memory),
        "yes" if outcome.same else "NO",
    ]


def line(machine: Mapping[str, Any], quick: bool) -> str:
    """The machine, the extent and the date of the measurements."""
    bf16 = "with" if machine["avx512_bf16"] else "without"
    extent = "a quick run (less work: indicative)" if quick else "a full run"
    cpu = f"{machine['cores']} cores of {machine['cpu']} {bf16} avx512_bf16"
    return f"{extent} on {machine['date']}: {cpu}, torch {machine['torch']}, Python {machine['python']}"


def as_json(machine: Mapping[str, Any], quick: bool, outcomes: Sequence[Outcome]) -> str:
    """All numbers as JSON: the measurements, and the values that the table derives from them."""
    rows = []
    for outcome in outcomes:
        made: dict[str, Any] = {}
        if not outcome.skipped:
            made = {"plain_median": median(outcome.plain), "ours_median": median(outcome.ours), "faster": outcome.faster}
            made |= {"value": outcome.value, "met": outcome.met, "shares": outcome.shares}
        rows.append({**asdict(outcome), "derived": made})
    return json.dumps({"machine": dict(machine), "quick": quick, "rows": rows}, indent=1)


def markdown(text: str) -> str:
    """The table of a JSON file."""
    found = json.loads(text)
    outcomes = [Outcome(**{key: value for key, value in row.items() if key != "derived"}) for row in found["rows"]]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, outcomes)]
    head = line(found["machine"], found["quick"])
    return "\n".join([f"{head[0].upper()}{head[1:]}.", "", *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1]).read_text()))
