"""The vocabulary: settings that studies share. A study's Config inherits the groups it needs."""

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hardbench.config import Config, options
from hardbench.declaration import setting
from hardbench.errors import ConfigError, brief
from hardbench.registry import DATASETS, DETECTORS, MODELS, OPTIMIZERS, SCHEDULERS, TASKS
from hardbench.rules import PLANT_TYPES, canonical_plant, how_kept, plant_shares, wrong_keep

ACTIVATIONS = ("relu", "tanh", "sigmoid", "leaky_relu", "gelu")
INITS = ("default", "kaiming_normal", "kaiming_uniform")
STRAGGLERS = "stragglers"  # the score that is counted at the inversions
LEVELS = ("dataset", "class")  # over which hard samples are counted
ESTIMATES = ("plugin", "grassberger")  # of mutual information
MODES = ("conv_weight", "activation_zero", "activation_mean")  # what a masked channel becomes


def wrong_name(name: str) -> str | None:
    """The rule for a run's name, as text, if this name breaks it; else None."""
    return None if 0 < len(name) <= 250 and name.isprintable() else "one line of 1 to 250 characters"


def wrong_tags(tags: Mapping[str, str]) -> str | None:
    """The rule for tags, as text, if these break it; else None. The store takes no tags that its addresses cannot hold."""
    for key, value in tags.items():
        plain = re.fullmatch(r"[/\w.\- :]{1,250}", key) and posixpath.normpath(key) == key and not key.startswith(("/", ".."))
        if not plain or key == "." or key.startswith("hardbench."):
            return "keys of 1 to 250 letters, digits, spaces and _-.:/, a path without . and .., not beginning with hardbench."
        if len(value) > 5000 or not value.replace("\n", "").replace("\t", "").isprintable():
            return f"{brief(key)} with at most 5000 printable characters"
    return None


@dataclass(frozen=True)
class MachineSettings(Config):
    """Settings of a command: its settings file, a folder for copies, device and threads."""

    config: str | None = setting(None, "YAML file or preset whose keys are option names.", stored=False)
    out: str | None = setting(None, "Folder that gets a copy of what the command made.", stored=False)
    device: str = setting(
        "auto", "Where to compute; auto takes a GPU where there is one.", choices=("auto", "cpu", "cuda"), was=("use_cuda",)
    )
    threads: int = setting(0, "CPU threads; 0 for one per core.", low=0, high=1024)


@dataclass(frozen=True)
class RunSettings(MachineSettings):
    """Settings of a run: its networks' seed and number, its name and tags."""

    seed: int = setting(0, "Seed of every random stream.", low=0, headline=True)
    repeats: int = setting(1, "Independent networks, trained together.", low=1, was=("runs", "N"), headline=True)
    first_repeat: int = setting(0, "Index of the first network; 2 with one repeat is the third of three.", low=0)
    precision: str = setting("fp32", "Arithmetic of the products.", choices=("fp32", "bf16"))
    name: str | None = setting(None, "Run name; default: model, data set and seed.", wrong=wrong_name)
    tag: dict[str, str] | None = setting(None, "Tags for the run, k=v,k2=v2.", wrong=wrong_tags)
    log_model: bool = setting(False, "Also log the first network as an MLflow model.")


@dataclass(frozen=True)
class PlaceSettings(Config):
    """The folder of the data files."""

    data_dir: str | None = setting(None, "Folder of the data files; default: a user cache folder.", env="HARDBENCH_DATA")


@dataclass(frozen=True)
class SourceSettings(PlaceSettings):
    """The data set, and the classes taken from it."""

    dataset: str = setting("digits", "Data set by name; emnist:SPLIT, npz:PATH.", choices=DATASETS, was=("dataset_name",), headline=True)
    class_map: dict[int, int] | None = setting(None, "Keep and relabel classes, original:new, e.g. 0:0,2:1.", headline=True)
    gaussian_mode: str = setting(
        "null", "Same distribution for all classes, or prescribed overlap.", choices=("null", "overlap"), read_by="dataset"
    )
    gaussian_shape: tuple[int, ...] = setting((1, 8, 8), "Shape of one Gaussian sample.", low=1, read_by="dataset")
    gaussian_classes: int = setting(3, "Gaussian classes.", low=2, read_by="dataset")
    gaussian_train: int = setting(20, "Gaussian training samples per class.", low=1, read_by="dataset")
    gaussian_test: int = setting(10, "Gaussian test samples per class.", low=1, read_by="dataset")
    gaussian_mean: float = setting(0.0, "Mean of every Gaussian feature (mode null).", read_by="dataset")
    gaussian_std: float = setting(1.0, "Standard deviation of every Gaussian feature.", above=0, read_by="dataset")
    gaussian_cosine: float | None = setting(None, "Cosine between the means of any two classes (mode overlap).", low=-1, read_by="dataset")
    gaussian_separation: float | None = setting(None, "Length of the class means (mode overlap).", above=0, read_by="dataset")

    def check(self) -> None:
        """Rules that join two settings."""
        if self.class_map is not None:
            new = sorted(set(self.class_map.values()))
            if new != list(range(len(new))) or len(new) < 2:
                raise ConfigError(f"class_map: {self.class_map}; new labels 0, 1, ... without a gap, at least two")
        if self.gaussian_mode is not None:
            for name in ("gaussian_cosine", "gaussian_separation"):
                if (getattr(self, name) is not None) != (self.gaussian_mode == "overlap"):
                    raise ConfigError(f"{name}: {getattr(self, name)}; given with gaussian_mode overlap, and only then")


def _wrong_dataset(word: str) -> str | None:
    """What is allowed instead of a word that names no data set; else None."""
    try:
        return None if DATASETS[word] else ""
    except ConfigError as error:
        return str(error).partition("; ")[2]


@dataclass(frozen=True)
class PlantSettings(SourceSettings):
    """Hardness that is put into the training samples on purpose."""

    noise_ratio: float = setting(0.0, "Share of training labels made wrong.", low=0, high=1)
    plant: str | None = setting(
        None,
        f"Training samples made hard, TYPE:SHARE,... of {', '.join(PLANT_TYPES)}; none for none.",
        canonical=canonical_plant,
        later=True,
    )
    plant_from: str | None = setting(
        None,
        "Data set that the inputs of type foreign are drawn from; default: noise.",
        choices=DATASETS, wrong=_wrong_dataset, later=True,
    )  # fmt: skip

    def check(self) -> None:
        """Rules that join two settings."""
        if self.plant is not None and self.noise_ratio:
            raise ConfigError(f"noise_ratio: {self.noise_ratio:g}; 0 beside plant, whose types make labels wrong")
        if self.plant_from is not None and "foreign" not in plant_shares(self.plant or "mislabel:1"):
            raise ConfigError(f"plant_from: {brief(self.plant_from)}; given with foreign in plant, and only then")
        if self.plant_from is not None and self.plant_from == self.dataset:
            raise ConfigError(f"plant_from: {brief(self.plant_from)}; another data set than the run's own")


@dataclass(frozen=True)
class DataSettings(PlantSettings):
    """The samples, and how they are transformed."""

    subset_size: int | str = setting(
        "all", "Training samples drawn before the validation split.", low=1, words=("all",), was=("max_train_samples",)
    )
    subset_from: str = setting("random", "Draw the subset at random or take the first.", choices=("random", "first"))
    val_size: float = setting(
        0.0, "Validation samples taken from train: a share below 1, a count from 1 on, 0 for none.", low=0, varies=True
    )
    normalize: str = setting(
        "channel",
        "Constants of standardisation: one for all inputs, per channel (a feature of vectors, a channel of images), or per pixel.",
        choices=("none", "scalar", "channel", "pixel"),
    )
    mean: tuple[float, ...] | None = setting(None, "Mean in place of the measured one, one number or one per channel.")
    std: tuple[float, ...] | None = setting(None, "Standard deviation in place of the measured one.", above=0)
    shift: float = setting(0.0, "Constant added to every standardised input.")
    augment: bool = setting(False, "Random crop (padding 4) and horizontal flip of training images.")
    corruption_p: float = setting(
        0.0,
        "Probability that a training pixel is replaced by U(0,1), drawn anew at every access.",
        low=0,
        high=1,
        was=("ps",),
        headline=True,
    )

    def check(self) -> None:
        """Rules that join two settings."""
        if self.val_size >= 1 and self.val_size != int(self.val_size):
            raise ConfigError(f"val_size: {self.val_size}; a share below 1 or a whole number of samples")
        for name in ("mean", "std"):
            if getattr(self, name) is not None and self.normalize not in ("scalar", "channel"):
                raise ConfigError(f"{name}: {list(getattr(self, name))}; normalize scalar or channel, not {self.normalize}")


@dataclass(frozen=True)
class ModelSettings(Config):
    """The network."""

    model: str = setting("mlp", "Network.", choices=MODELS, was=("model_type",), headline=True)
    depth: int | None = setting(None, "Hidden layers.", low=1, high=10_000, read_by="model", was=("layers",), headline=True)
    width: int | None = setting(None, "Units or channels per hidden layer.", low=1, read_by="model", headline=True)
    widths: tuple[int, ...] | None = setting(
        None, "Units layer by layer, 256,128.", low=1, read_by="model", instead_of=("depth", "width"), headline=True
    )
    activation: str = setting("relu", "Nonlinearity.", choices=ACTIVATIONS, read_by="model", headline=True)
    init: str = setting("default", "Initial weights; default is PyTorch's.", choices=INITS, read_by="model")
    pooling: str = setting("max", "Pooling after each convolution.", choices=("max", "avg"), read_by="model")
    small_input: bool | str = setting(
        "auto", "Stem for small images (3x3, stride 1, no pooling); auto: up to 64 pixels.", words=("auto",), read_by="model"
    )
    dropout: float = setting(0.5, "Share of the head's hidden units set to 0 in training.", low=0, high=1, read_by="model")
    similarity: str = setting("cosine", "Score of an activation against an anchor.", choices=("cosine", "l2"), read_by="model")
    tau: float = setting(0.1, "Temperature of the softmax over scores.", above=0, read_by="model")
    lambda_ace: float = setting(0.1, "Weight of the term that sets a layer apart from the next.", low=0, read_by="model")
    ace_variant: str = setting(
        "ce_i_next", "Which distance from the next layer.", choices=("ce_i_next", "ce_next_i", "js", "sym_kl"), read_by="model"
    )
    normalize_layer_input: bool = setting(False, "Scale every hidden layer's input to a root mean square of 1.", read_by="model")
    residual: bool = setting(False, "Add a hidden layer's input to its output.", read_by="model")


@dataclass(frozen=True)
class CheckpointSettings(Config):
    """When a run is saved, and for how long."""

    checkpoint_every: float = setting(60.0, "Seconds between checkpoints.", low=0)
    keep_checkpoints: bool = setting(True, "Keep the checkpoints when the run has ended.")


@dataclass(frozen=True)
class TrainSettings(CheckpointSettings):
    """The training of the networks."""

    epochs: int = setting(10, "Passes over the training set.", low=1, high=10**9, varies=True, headline=True)
    batch_size: int | str = setting(64, "Samples per step, or full.", low=1, words=("full",), varies=True, headline=True)
    train_share: float = setting(
        1.0, "Share of the training samples that each network trains on, its own random ones.", above=0, high=1, later=True
    )
    optimizer: str = setting("adam", "Optimiser.", choices=OPTIMIZERS, varies=True, headline=True)
    lr: float = setting(1e-3, "Learning rate.", above=0, was=("learning_rate",), varies=True, headline=True)
    momentum: float = setting(0.0, "Momentum.", low=0, high=1, read_by="optimizer")
    weight_decay: float = setting(0.0, "Weight decay.", low=0, varies=True)
    scheduler: str = setting("constant", "Course of the learning rate.", choices=SCHEDULERS, varies=True)
    warmup: float = setting(0.05, "Share of the steps with a linearly growing learning rate.", low=0, high=1, read_by="scheduler")
    target_accuracy: float = setting(
        0.9999, "Accuracy on a network's own training samples, eval mode, clean inputs.", low=0, high=1, varies=True, was=("target_acc",)
    )
    stop_at_target: bool = setting(False, "Stop a network at the end of the epoch in which it reaches the target.")
    keep: str | None = setting(
        None,
        "Training samples to train on: easy:0.8 or hard:0.8, that share of them by the score of hardness (of the whole data set, not of"
        " every class), random:0.8, or unsuspected, those that hardness does not call hard. Drawn after the validation split.",
        wrong=wrong_keep, later=True,
    )  # fmt: skip


@dataclass(frozen=True)
class MeasureSettings(Config):
    """The measurements, and when they are made."""

    eval_points: int = setting(10, "Evaluation points, spaced evenly in the logarithm of the step.", low=1, high=10**6, was=("num_points",))
    eval_steps: tuple[int, ...] | None = setting(
        None, "Evaluation points as steps, 0,10,100 (overrides eval_points).", low=0, empty=True, was=("steps",)
    )
    layer_metrics: tuple[str, ...] = setting(
        ("none",), "Layer metrics: all, fast (without participation_ratio and ridge_r2), none, or names.", varies=True, lone="all"
    )
    layer_estimator: str = setting("sound", "Also compute the published single-batch estimates, or not.", choices=("sound", "published"))
    null_repeats: int = setting(0, "Permutations of the labels that layer metrics are computed under, for a band of chance.", low=0)
    record_dynamics: bool = setting(
        False, "Store logits, and length and class cosine of the last hidden activations, of every training sample over training time."
    )
    record_points: str = setting(
        "epochs",
        "When to record: at the end of every epoch, at the evaluation points, or what every network has come to in the end.",
        choices=("epochs", "evaluation", "last"),
        later=True,
    )
    record_test: bool = setting(False, "Record the test samples, too.", later=True)
    record_dtype: str = setting("float32", "Numbers that recorded logits are stored as.", choices=("float32", "float16"), later=True)
    hardness: str | None = setting(
        None,
        "Run (or RUN:SCORE) whose hard and easy samples every metric is split into: of score, stragglers, invert, or of recorded dynamics.",
    )
    log_every: int = setting(5, "Steps between two points of the training curves.", low=1, was=("metrics_log_frequency",))

    def check(self) -> None:
        """Rules that join two settings."""
        for name, option in options(type(self)).items():
            if name.startswith("record_") and not self.record_dynamics and getattr(self, name) != option.declared.default:
                raise ConfigError(f"{name}: {getattr(self, name)}; given with record_dynamics, and only then")


@dataclass(frozen=True)
class TrainingSettings(RunSettings, MeasureSettings, TrainSettings, ModelSettings, DataSettings):
    """All that a training reads."""

    def check(self) -> None:
        """Rules that join two settings."""
        if self.keep is not None and self.hardness is None and how_kept(self.keep)[0] != "random":
            raise ConfigError(f"keep: {self.keep}; with hardness RUN:SCORE, which says what is easy or hard (random:0.8 needs none)")


@dataclass(frozen=True)
class PoolSettings(PlantSettings):
    """The samples that the inversion study trains on."""

    task: str = setting("classes", "What is learned: one class per label, or even against odd.", choices=TASKS, headline=True)
    subset_size: int | str = setting(
        20000,
        "Samples: drawn from train and test (classes), the first of train (parity), or all.",
        low=1, words=("all",), was=("max_train_samples",), varies=True, headline=True,
    )  # fmt: skip
    pool: str = setting(
        "all",
        "Samples of task classes: from train and test, or train alone, the subset that train draws of this size (parity has no others).",
        choices=("all", "train"),
        later=True,
    )
    noise_ratio: float = setting(0.0, "Share of labels made wrong.", low=0, high=1, headline=True)


@dataclass(frozen=True)
class InversionSettings(PoolSettings):
    """The networks of the inversion study, their training, and what an inversion is."""

    dataset: str = setting("mnist", "Data set by name; emnist:SPLIT, npz:PATH.", choices=DATASETS, was=("dataset_name",), headline=True)
    depth: int | None = setting(2, "Hidden layers.", low=1, high=10_000, was=("layers",), varies=True)
    width: int | None = setting(20, "Units per hidden layer.", low=1, varies=True)
    widths: tuple[int, ...] | None = setting(None, "Units layer by layer, 20,20.", low=1, instead_of=("depth", "width"), headline=True)
    activation: str = setting("tanh", "Nonlinearity.", choices=ACTIVATIONS)
    init: str = setting("default", "Initial weights; default is PyTorch's.", choices=INITS)
    epochs: int = setting(500, "Passes over the samples, one full-batch step each.", low=1, high=10**9, headline=True)
    lr: float = setting(0.1, "Learning rate of plain gradient descent.", above=0, was=("learning_rate",), headline=True)
    latent_layer: int = setting(0, "Hidden layer whose radii are measured, counted from 0 at the input side.", low=0)
    detector: str = setting(
        "smooth",
        "Rule that finds the inversion in a radius curve; smooth: a minimum confirmed by `patience` later epochs, not the smallest radius.",
        choices=DETECTORS,
        headline=True,
    )
    window: int = setting(11, "Epochs over which the radius is averaged.", low=1, read_by="detector")
    patience: int = setting(20, "Later epochs that have to be higher than the minimum.", low=1, read_by="detector")
    guard: int = setting(20, "First epoch that can be an inversion.", low=0, read_by="detector")
    snapshot: str = setting(
        "per_class",
        "Weights that judge a class: of its own inversion, or of the last class's.",
        choices=("per_class", "last"),
        headline=True,
    )
    if_no_inversion: str = setting(
        "end", "A class without inversion: judge it at the end, leave it out, or draw another network.", choices=("end", "exclude", "retry")
    )

    @property
    def layers(self) -> tuple[int, ...]:
        """Units of every hidden layer."""
        return self.widths or (self.width or 0,) * (self.depth or 0)

    def check(self) -> None:
        """Rules that join two settings."""
        count = len(self.layers)
        if self.latent_layer >= count:
            raise ConfigError(f"latent_layer: {self.latent_layer}; at most {count - 1}, the last of {count} hidden layers")
