"""From words to cells and from cells to jobs."""

import pytest
from words import no_surroundings

from hardbench.campaign import jobs
from hardbench.campaign.grid import Cell
from hardbench.campaign.plan import make
from hardbench.config import options, parse_yaml, read_file
from hardbench.configs.sweep import config_for, sweep_class
from hardbench.errors import ConfigError, TrackingError
from hardbench.studies import sweep, train


def config(study="train", file=None, **words):
    cls = sweep_class(study)
    return cls.read({"study": study, **words}, {}, file or {})


def cells(*names, study="train", **more):
    """The named settings of every cell, in order."""
    found, swept = sweep.cells_of(config(study, **more))
    return [tuple(getattr(cell, name) for name in names) for cell in found], swept


def test_commas_make_a_grid():
    found, swept = cells("activation", "corruption_p", activation="relu,tanh", corruption_p="0,0.5,1")
    assert sorted(found) == [(a, p) for a in ("relu", "tanh") for p in (0.0, 0.5, 1.0)]
    assert swept == ["activation", "corruption_p"]


def test_semicolons_part_values_with_commas_inside():
    assert cells("widths", widths="256,128;64")[0] == [((256, 128),), ((64,),)]
    assert cells("widths", widths="256,128") == ([((256, 128),)], [])
    assert cells("class_map", class_map="0:0,2:1;1:0,3:1")[0] == [({0: 0, 2: 1},), ({1: 0, 3: 1},)]
    assert cells("eval_steps", eval_steps="0,10;5")[0] == [((0, 10),), ((5,),)]


def test_yaml_is_the_same_grid():
    text = "fixed: {widths: [8, 4], lr: 1e-2}\ngrid: {activation: [relu, tanh], corruption_p: [0, 0.5], seed: 3}"
    found, swept = cells("activation", "corruption_p", "seed", "widths", "lr", file=parse_yaml(text, "file"))
    assert sorted(found) == [(a, p, 3, (8, 4), 0.01) for a in ("relu", "tanh") for p in (0.0, 0.5)]
    assert swept == ["activation", "corruption_p", "seed"]


def test_a_list_of_grids_is_their_union():
    text = (
        "grid: [{model: mlp, widths: [[8, 4]], seed: [0, 1]}, {model: simple_cnn, seed: [0, 2]}, {model: mlp, widths: [[8, 4]], seed: 1}]"
    )
    found, _ = cells("model", "widths", "seed", file=parse_yaml(text, "file"))
    assert found == [("mlp", (8, 4), 0), ("mlp", (8, 4), 1), ("simple_cnn", None, 0), ("simple_cnn", None, 2)]


def test_null_in_a_grid_is_the_default():
    found, swept = cells("depth", "seed", file=parse_yaml("fixed: {lr: null}\ngrid: {depth: null, seed: [0, 1]}", "file"))
    assert found == [(2, 0), (2, 1)] and swept == ["depth", "seed"]


def test_the_command_line_comes_before_the_file():
    text = "fixed: {epochs: 3, depth: 2}\ngrid: {activation: [relu, tanh], seed: [0, 1]}"
    found, swept = cells("activation", "seed", "epochs", "widths", activation="gelu", epochs="1", widths="4", file=parse_yaml(text, "f"))
    assert found == [("gelu", 0, 1, (4,)), ("gelu", 1, 1, (4,))]
    assert swept == ["seed"]


def test_what_a_model_does_not_read_is_left_out_in_a_sweep_over_models():
    found, _ = cells("model", "widths", model="mlp,simple_cnn", widths="8;16")
    assert sorted(found, key=str) == [("mlp", (16,)), ("mlp", (8,)), ("simple_cnn", None)]


def test_a_model_chooses_the_run_that_is_read(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    assert cells("run", "model", study="mask_mi", model="vgg11,vgg13")[0] == [(None, "vgg11"), (None, "vgg13")]
    with pytest.raises(TrackingError, match="run: last; there is no finished run of train in"):
        cells("run", study="mask_mi")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"model": "simple_cnn", "widths": "8;16"}, "widths: .*model simple_cnn does not read it"),
        ({"model": "mlp,simple_cnn", "tau": "0.1,0.2"}, "tau: 0.1; no model of the sweep reads it"),
        ({"activation": "relu,tanhh"}, "activation: tanhh; nearest: tanh"),
        ({"corruption_p": "0,50"}, "corruption_p: 50; a share"),
        ({"model": "mpl,cnn"}, "model: mpl; nearest: mlp"),
        ({"file": {"fixed": {"activation": "relu,tanh"}}}, "activation: relu,tanh; "),
        ({"file": {"fixed": {"workers": 3}}}, "workers: of the sweep itself"),
        ({"file": {"grid": {"activatoin": ["relu"]}}}, "activatoin: no such setting; nearest: activation"),
        ({"file": {"grid": [3]}}, "grid: 3; settings with their values"),
        ({"repeats": "0,1"}, "repeats: 0; at least 1"),
        ({"max_workers": "3"}, "max_workers: a former name; it is workers now"),
    ],
)
def test_errors_are_one_line(words, line):
    with pytest.raises(ConfigError, match=line):
        sweep.cells_of(config(**words))


def test_the_study_is_the_first_word(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    assert "show" not in options(config_for(["simulate"])) and "research_only" not in options(config_for(["--study=simulate"]))
    assert "checkpoint" in options(config_for(["--dry-run", "--study", "eval"]))
    assert "corruption_p" in options(config_for([]))
    with pytest.raises(ConfigError, match="study: trian; nearest: train"):
        config_for(["trian"])


def test_every_setting_of_the_study_can_be_given():
    own, of_train = options(sweep.Config), options(train.Config)
    assert {name for name, option in of_train.items() if option.declared.stored} <= own.keys()


def test_the_stored_settings_are_the_same_sweep():
    text = "fixed: {lr: 1e-2}\ngrid: [{activation: [relu, tanh]}, {widths: [[8, 4], [3]]}]"
    first = config(file=parse_yaml(text, "file"), seed="0,1", class_map="0:0,2:1")
    again = sweep.Config.read({}, {}, parse_yaml(first.to_yaml(), "config.yaml"))
    assert sweep.cells_of(again) == sweep.cells_of(first)
    assert sweep._key(again, sweep.cells_of(again)[1]) == sweep._key(first, sweep.cells_of(first)[1])


def test_what_a_campaign_is_known_by():
    def key(**words):
        made = config(**words)
        return sweep._key(made, sweep.cells_of(made)[1])

    assert key(corruption_p="0,1") == key(corruption_p="0,0.5,1", workers="3", out="elsewhere")
    assert key(corruption_p="0,1") != key(corruption_p="0,1", epochs="3")
    assert key(corruption_p="0,1") != key(corruption_p="0,1", seed="0,1")
    assert key(corruption_p="0,1", name="mine") == key(seed="0,1", name="mine")


@pytest.mark.parametrize(("preset", "networks", "count"), [
    ("corruption_campaign", 3300, 33), ("corruption_reliable", 2400, 60), ("corruption_example", 105, 21), ("corruption_quick", 50, 10),
])  # fmt: skip
def test_presets(preset, networks, count):
    found, _ = sweep.cells_of(config(file=read_file(preset)))
    assert (len(found), sum(cell.repeats for cell in found)) == (count, networks)
    assert {(cell.normalize, cell.val_size, cell.keep_checkpoints) for cell in found} == {("none", 0.0, False)}


def plan(**words):
    found, swept = sweep.cells_of(config(**words))
    return make("train", 1, found, swept)


def test_cells_that_differ_in_seed_level_or_noise_share_stacks(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    made = plan(
        layer_metrics="none", widths="8", seed="0,1", corruption_p="0,0.5", noise_ratio="0,0.1", activation="relu,tanh", repeats="3"
    )
    work = jobs.stacks(made.cells, range(16), False, 1)
    assert [job.networks for job in work] == [20, 4, 20, 4]
    assert sorted((part.cell, r) for job in work for part in job.parts for r in range(part.first, part.first + part.count)) == [
        (cell, r) for cell in range(16) for r in range(3)
    ]
    assert len({made.cells[part.cell].config.activation for part in work[0].parts}) == 1
    assert max(job.networks for job in jobs.stacks(made.cells, range(16), False, 8)) == 3


@pytest.mark.parametrize("words", [
    {"stop_at_target": "true"}, {"layer_metrics": "all"}, {"layer_metrics": "none", "subset_size": "300"},
    {"val_size": "0.1", "layer_metrics": "none"}, {"plant": "corrupt:0.1", "layer_metrics": "none"},
])  # fmt: skip
def test_what_a_seed_decides_keeps_stacks_apart(words, monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    made = plan(widths="8", seed="0,1", repeats="2", **words)
    assert [len(job.parts) for job in jobs.stacks(made.cells, [0, 1], False, 1)] == [1, 1]


def test_a_hash_is_of_what_numbers_depend_on(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    one = plan(widths="8")
    assert one.cells[0].key == plan(widths="8", threads="2", tag="a=b", name="x").cells[0].key
    assert one.cells[0].key != plan(widths="8", lr="0.01").cells[0].key
    assert one.cells[0].key != make("train", 2, *sweep.cells_of(config(widths="8"))).cells[0].key
    assert isinstance(one.cells[0], Cell) and one.cells[0].baseline == pytest.approx(0.89, abs=0.03)
