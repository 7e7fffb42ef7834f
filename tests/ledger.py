"""All that a project holds, in words that two projects can be compared by: runs, points, files and what is in them."""

import csv
import hashlib
import io
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

Ledger = dict[str, Any]
OF_THE_PROCESS = {f"hardbench.{name}" for name in ("host", "process", "boot", "namespace", "git", "heartbeat", "created", "omp")}
OF_THE_PROCESS |= {"mlflow.user", "mlflow.log-model.history"}
TIMED = {"samples_per_second", "eval/seconds"}  # metrics whose presence is compared
UNREAD = {"plan.txt", "seconds.npy"}  # files of what one command did, not of what is known in the end
CLOCKS = {"seconds"}  # columns of tables, arrays, entries of checkpoints
STORE = re.compile(r"mlflow\.db(-wal|-shm|-journal|\.lock)?|.*[0-9a-f]{32}/lock")  # no results: the database, what is locked
ID = re.compile(r"[0-9a-f]{32}")


def project(folder: Path, clean: bool) -> Ledger:
    """{runs: finished ones by what they are, left: the others, files: path -> content}; `clean` moves all runs to the trash afterwards."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    from hardbench import tracking

    client = MlflowClient(tracking.uri())
    experiments = [found.experiment_id for found in client.search_experiments()]
    there = client.search_runs(experiments, max_results=5000, order_by=["attributes.start_time ASC"]) if experiments else []
    gone = client.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY, max_results=5000) if experiments else []
    done, names = [run for run in there if run.info.status == "FINISHED"], {}
    for run in done:
        tags = run.data.tags
        name = " ".join(filter(None, (tags.get(f"hardbench.{key}", "") for key in ("study", "kind", "cell"))))
        names[run.info.run_id] = f"{name} {sum(other.startswith(f'{name} ') for other in names.values())}"
    remote = folder / "of the server"
    if not tracking.uri().startswith("sqlite"):
        _download(client, there, remote)
    skipped = {run.info.run_id for run in [*there, *gone]} - names.keys()
    found = {
        "runs": {names[run.info.run_id]: _run(client, run, names) for run in done},
        "left": [_left(folder, run) for run in there if run.info.run_id in skipped],
        "files": dict(_files(folder, names, skipped)),
    }
    for run in there if clean else ():
        client.delete_run(run.info.run_id)
    return found


def _download(client: Any, runs: list[Any], folder: Path) -> None:
    import mlflow

    for run in runs:
        if client.list_artifacts(run.info.run_id):
            mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, dst_path=str(folder / run.info.run_id), tracking_uri=client.tracking_uri
            )


def _run(client: Any, run: Any, names: Mapping[str, str]) -> dict[str, Any]:
    tags = {key: value for key, value in run.data.tags.items() if key not in OF_THE_PROCESS and not key.startswith("mlflow.source.")}
    points = _history(client, run)
    return {
        "params": dict(run.data.params),
        "tags": {key: _plain(value, names) for key, value in tags.items()},
        "points": {key: [[step, None if key in TIMED else repr(value)] for step, value in rows] for key, rows in points.items()},
        "inputs": sorted(one.dataset.digest for one in run.inputs.dataset_inputs),
        "models": len(run.outputs.model_outputs) if run.outputs else 0,
    }


def _history(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Every point of every metric: (step, value)."""
    prefix = "sqlite:///"
    if not client.tracking_uri.startswith(prefix):
        return {key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics}
    points: dict[str, list[tuple[int, float]]] = {key: [] for key in run.data.metrics}
    with closing(sqlite3.connect(client.tracking_uri.removeprefix(prefix))) as database:  # at one go, not 5 ms for each
        for key, step, value, nan in database.execute("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", [run.info.run_id]):
            points.setdefault(key, []).append((step, float("nan") if nan else value))
    return {key: sorted(rows) for key, rows in points.items()}


def _left(folder: Path, run: Any) -> dict[str, Any]:
    """A run that is not FINISHED: its state, and how much of a result lies in it."""
    files = [path for path in folder.rglob(f"{run.info.run_id}/**/*") if path.is_file() and not path.name.startswith(".")]
    return {
        "status": run.info.status,
        "study": run.data.tags.get("hardbench.study", "without a study"),
        "error": run.data.tags.get("error", ""),
        "points": len(run.data.metrics),
        "files": sorted(path.name for path in files if path.name not in ("config.yaml", "lock")),
    }


def _plain(text: str, names: Mapping[str, str]) -> str:
    return ID.sub(lambda match: f"<{names.get(match[0], '*')}>", text)


def _files(folder: Path, names: Mapping[str, str], skipped: set[str]) -> Iterator[tuple[str, Any]]:
    """(path with runs by their names, content as far as it can be compared) of every file but the store's."""
    seen: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        words = str(path.relative_to(folder))
        if path.is_dir() or STORE.fullmatch(words) or skipped & set(ID.findall(words)):
            continue
        name = _plain(words, names)
        seen[name] += 1
        yield f"{name} ({seen[name]})" if seen[name] > 1 else name, None if path.name in UNREAD else _content(path, names)


def _content(path: Path, names: Mapping[str, str]) -> Any:
    import numpy as np
    import torch

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            return {key: _array(found[key]) for key in found.files if key not in CLOCKS}
    if path.suffix == ".npy":
        return _array(np.load(path, allow_pickle=False))
    if path.suffix == ".pt":
        return _tensors(torch.load(path, weights_only=True))
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{key: _plain(str(value), names) for key, value in row.items() if key not in {"run", *CLOCKS}} for row in rows]
    return _plain(path.read_text(), names) if path.suffix in (".json", ".yaml", ".txt") else None


def _array(array: Any) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _tensors(state: Any) -> Any:
    import torch

    if isinstance(state, torch.Tensor):
        return f"{state.dtype} {_array(state.contiguous().reshape(-1).view(torch.uint8).numpy())} {tuple(state.shape)}"
    if isinstance(state, Mapping):
        return {str(key): _tensors(value) for key, value in state.items() if key not in CLOCKS}
    return [_tensors(value) for value in state] if isinstance(state, list | tuple) else repr(state)


# comparison


def lost(found: Ledger, whole: Ledger, again: bool = False) -> list[str]:
    """What a project lacks or has in excess of an undisturbed one, in lines. `again`: points of a repeated command may stand twice."""
    wrong = [
        f"a run of {one['study']} left {one['status']} ({one['error']}) with {one['points']} metrics and files {one['files']}"
        for one in found["left"]
        if one["status"] == "RUNNING" or one["points"] or one["files"]
    ]
    wrong += _keys("run", found["runs"], whole["runs"])
    for name in found["runs"].keys() & whole["runs"].keys():
        one, two = found["runs"][name], whole["runs"][name]
        for part in ("params", "tags"):
            wrong += [f"{name}: {line}" for line in _differ(part, one[part], two[part])]
        wrong += [f"{name}: {line}" for line in _points(one["points"], two["points"], again)]
        wrong += [f"{name}: {part} {one[part]}, not {two[part]}" for part in ("inputs", "models") if one[part] != two[part]]
    return wrong + _differ("file", found["files"], whole["files"])


def _points(found: Mapping[str, Any], whole: Mapping[str, Any], again: bool) -> Iterator[str]:
    yield from _keys("metric", found, whole)
    for key in found.keys() & whole.keys():
        mine = [list(row) for row in sorted(set(map(tuple, found[key])), key=lambda row: row[0])] if again else found[key]
        if len({step for step, _ in mine}) < len(mine):
            yield f"metric {key}: steps twice"
        elif mine != whole[key]:
            yield f"metric {key}: {len(mine)} points {mine[:2]}.., not {len(whole[key])} {whole[key][:2]}.."


def _keys(what: str, found: Mapping[str, Any], whole: Mapping[str, Any]) -> list[str]:
    return [f"{what} {key} missing" for key in sorted(whole.keys() - found.keys())] + [
        f"{what} {key} in excess" for key in sorted(found.keys() - whole.keys())
    ]


def _differ(what: str, found: Mapping[str, Any], whole: Mapping[str, Any]) -> list[str]:
    wrong = _keys(what, found, whole)
    for key in sorted(found.keys() & whole.keys()):
        one, two = found[key], whole[key]
        if one == two:
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            wrong += _differ(f"{what} {key}:", one, two)
        else:
            wrong.append(f"{what} {key} differs: {str(one)[:80]}, not {str(two)[:80]}")
    return wrong
