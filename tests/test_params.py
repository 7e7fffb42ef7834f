"""Settings that differ are seen: MLflow's params hold what departs from its default, `compare` shows it, of older runs, too."""

import csv
import shutil
from pathlib import Path

import pytest
from projects import all_runs, client, last, new_project
from words import given

from hardbench import tracking
from hardbench.cli import main
from hardbench.config import ASIDE, options
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings
from hardbench.stored import StoredRun
from hardbench.studies import invert, mask_mi, stragglers, sweep, train

WORDS = "--epochs 1 --width 8 --depth 1 --threads 1 --eval-points 2 --layer-metrics none"
QUICK = WORDS.split()


def departing(*words, config=train.Config):
    found = given(*words, config=config)
    return {name: value for name, value in found.params().items() if name not in found.headline()}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_models_own_defaults_are_no_departures(model):
    assert departing("--model", model) == {}
    config = given("--model", model)
    assert config.params() == config.headline()


def test_every_setting_that_departs_is_a_param():
    words = "--noise-ratio .1 --subset-size 100 --normalize pixel --val-size .2 --precision bf16 --scheduler cosine --eval-steps 0,5"
    expected = {
        "noise_ratio": 0.1,
        "subset_size": 100,
        "normalize": "pixel",
        "val_size": 0.2,
        "precision": "bf16",
        "scheduler": "cosine",
        "eval_steps": (0, 5),
    }
    assert departing(*words.split()) == expected
    assert departing("--model", "gmlp", "--val-size", ".1", "--tau", ".2") == {"tau": 0.2}  # .1 is gmlp's own
    assert departing("--model", "gmlp", "--scheduler", "constant", "--val-size", "0") == {"scheduler": "constant", "val_size": 0}
    assert departing("--optimizer", "sgd", "--momentum", ".5") == {"momentum": 0.5}
    assert departing("--model", "vgg11", "--momentum", ".9") == {}
    assert departing("--layer-metrics", "all") == {}  # mlp's own
    assert departing("--model", "cnn", "--layer-metrics", "all") == {"layer_metrics": ("all",)}


def test_where_and_how_is_no_param():
    words = "--device cpu --threads 1 --data-dir d --out o --name n --tag a=b --checkpoint-every 1 --keep-checkpoints false --log-model"
    assert departing(*words.split()) == {}
    settings = {name for cls in (train.Config, mask_mi.Config, stragglers.Config) for name in options(cls)}
    assert set(ASIDE) <= settings


@pytest.mark.parametrize(
    ("config", "words", "expected"),
    [
        (invert.Config, "--task parity", {}),
        (invert.Config, "--task parity --depth 3 --guard 5", {"depth": 3, "guard": 5}),
        (invert.Config, "--widths 3,4", {}),  # they stand in the place of depth and width, which say nothing then
        (stragglers.Config, "--remaining-train-ratios 0,1", {"remaining_train_ratios": (0, 1)}),
        (mask_mi.Config, "--layers 0,1 --memory 99", {"layers": (0, 1)}),
        (sweep.Config, "--noise-ratio 0,.1 --workers 1", {}),
    ],
)
def test_the_other_studies(config, words, expected):
    assert departing(*words.split(), config=config) == expected


def test_what_params_hold_makes_the_same_configuration():
    """Nothing but ASIDE is missing from them."""
    words = "--model gmlp --noise-ratio .1 --tau .3 --normalize scalar --mean 0.5 --std 2 --warmup .2"
    config = given(*words.split())
    again = train.Config(**config.params(), data_dir=config.data_dir)
    assert again == config


def compared(*words):
    assert main(["compare", "--csv", "table.csv", *words]) == 0
    with Path("table.csv").open() as file:
        return list(csv.DictReader(file))


def settings_of(row):
    return {name: value for name, value in row.items() if "/" not in name and name not in ("run", "name", "status")}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A project with a run at the defaults and one that departs from them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("project"))
        assert main(["train", *QUICK, "--name", "plain", "--checkpoint-every", "9"]) == 0
        words = "--noise-ratio .1 --subset-size 300 --val-size .2 --mean 0.5 --normalize scalar --activation tanh"
        assert main(["train", *QUICK, *words.split(), "--name", "other"]) == 0
        yield folder


def test_compare_shows_every_setting_that_differs(two, capsys):
    other, plain = all_runs()
    assert plain.params.keys() < other.params.keys()
    assert (other.params["noise_ratio"], other.params["subset_size"], other.params["normalize"]) == ("0.1", "300", "scalar")
    rows = {row["name"]: settings_of(row) for row in compared()}
    assert rows == {
        "plain": {"noise_ratio": "0.0", "subset_size": "all", "normalize": "channel", "val_size": "0.0", "mean": "-", "activation": "relu"},
        "other": {
            "noise_ratio": "0.1",
            "subset_size": "300",
            "normalize": "scalar",
            "val_size": "0.2",
            "mean": "(0.5,)",
            "activation": "tanh",
        },
    }
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("noise ratio", "subset size", "normalize", "val size"))
    order = [row["name"] for row in compared("--sort", "noise_ratio")]
    assert order == ["other", "plain"] and [row["name"] for row in compared("--sort", "-noise_ratio")] == order[::-1]
    assert [run.info.run_name for run in client().search_runs([last().run.info.experiment_id], "params.noise_ratio = '0.1'")] == ["other"]


def test_compare_shows_them_of_runs_made_before(two):
    """Runs of which only the headline settings are params, as older versions wrote them."""
    expected = [settings_of(row) for row in compared()]
    store, headline = client(), {name for name, option in options(train.Config).items() if option.declared.headline}
    older = []
    for one in all_runs()[:2]:
        made = store.create_run(one.run.info.experiment_id, tags=one.tags, run_name=one.name)
        for name in headline:
            store.log_param(made.info.run_id, name, one.params[name])
        folder = Path(made.info.artifact_uri.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(one.file("config.yaml"), folder)
        store.set_terminated(made.info.run_id, "FINISHED")
        older.append(made.info.run_id)
    assert [settings_of(row) for row in compared(*older)] == expected
    damaged = StoredRun(store, store.get_run(older[0])).file("config.yaml")
    damaged.write_text("[")
    assert {"noise_ratio", "seed"} & settings_of(compared(*older)[0]).keys() == set()  # the headline settings are the same
    for run_id in older:
        store.delete_run(run_id)


def test_a_model_among_others_brings_no_columns_that_mean_nothing(monkeypatch, tmp_path):
    assert {"tau", "similarity"} <= {name for name, option in options(TrainingSettings).items() if option.declared.read_by}
    new_project(monkeypatch, tmp_path)
    assert main(["train", *QUICK, "--name", "m"]) == main(["train", "--model", "gmlp", *QUICK, "--name", "g"]) == 0
    row = settings_of(compared()[0])
    assert {"model", "val_size", "scheduler"} <= row.keys() and not {"tau", "similarity", "name"} & row.keys()
    assert main(["train", "--model", "gmlp", *QUICK, "--name", "t", "--tau", ".5"]) == 0
    assert {row["name"]: row["tau"] for row in compared()} == {"m": "-", "g": "0.1", "t": "0.5"}


def files(run):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in run.file("").rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", [None, "there"])
def test_figures_of_several_runs_touch_none_of_them(two, capsys, out):
    first, second = all_runs()[:2]
    before, data = [files(run) for run in (first, second)], [run.run.to_dictionary() for run in (first, second)]
    capsys.readouterr()
    assert main(["plot", first.id, second.id, "--kind", "class-hardness", *(["--out", out] if out else [])]) == 0
    folder = Path(out or f"figures-{first.id[:8]}-{second.id[:8]}")
    assert [path.name for path in folder.iterdir()] == ["class_hardness.png"]
    assert f"{folder}/class_hardness.png" in capsys.readouterr().out
    again = [tracking.find(run.id, ["train"]) for run in (first, second)]
    assert [files(run) for run in again] == before
    assert [run.run.to_dictionary() for run in again] == data


def test_one_run_named_twice_is_one(two, capsys):
    run = last()
    assert main(["plot", run.id, run.id[:10], "--kind", "class-hardness"]) == 0
    assert str(run.file("figures/class_hardness.png")) in capsys.readouterr().out


def test_the_folder_of_many_runs_has_a_short_name():
    from types import SimpleNamespace

    from hardbench.figures import folder_name

    runs = [SimpleNamespace(id=f"{place:032d}"[::-1]) for place in range(300)]
    assert len(folder_name(runs)) < 80
    assert folder_name(runs) != folder_name(runs[:-1]) != folder_name(runs[:-2])
