"""Settings of `hardbench mask-mi`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.settings import ESTIMATES, MODES, MachineSettings, PlaceSettings, wrong_name, wrong_tags


@dataclass(frozen=True)
class Config(MachineSettings, PlaceSettings):
    """Settings of `hardbench mask-mi`."""

    run: str | None = setting(
        None, "Trained run: id, unique prefix of one, or last (the default).", position=True, was=("run_dir", "run_id")
    )
    model: str | None = setting(
        None, "The newest finished run of that model, or all: of each VGG.", instead_of=("run",), was=("model_type",), headline=True
    )
    checkpoint: str = setting("best", "Weights: best on validation, or last.", choices=("best", "last"), headline=True)
    n_subsets: int = setting(100, "Sets of channels per layer.", low=1, headline=True)
    mask_mode: str = setting(
        "conv_weight",
        "What a masked channel becomes: what its layer gives with weights 0, zero, or its mean over the images.",
        choices=MODES,
        headline=True,
    )
    estimator: str = setting(
        "plugin", "Estimate of the information; grassberger for few samples per pair.", choices=ESTIMATES, headline=True
    )
    layers: tuple[int, ...] = setting(("all",), "Layers, counted among those that can be masked: all, or 0,3.", low=0, words=("all",))
    images: int | str = setting("all", "Test images, drawn once.", low=1, words=("all",), headline=True)
    batch_size: int = setting(128, "Images that go through the network at once.", low=1)
    memory: int = setting(512, "MiB that values on their way through the network may take; neither sets nor images add to it.", low=16)
    hardness: str | None = setting(None, "Run (or RUN:STRATEGY) whose easy and hard test images are also measured apart.")
    pairs: int = setting(0, "Strongest channels per layer whose pairwise synergy is estimated, too.", low=0)
    seed: int = setting(0, "Seed of the sets, of the drawn images and of the intervals.", low=0, headline=True)
    precision: str = setting("fp32", "Arithmetic of the products.", choices=("fp32", "bf16"), headline=True)
    name: str | None = setting(None, "Run name; default: model and mode.", wrong=wrong_name)
    tag: dict[str, str] | None = setting(None, "Tags for the run, k=v,k2=v2.", wrong=wrong_tags)

    def check(self) -> None:
        """A word beside `all` means nothing, nor does a pair of one."""
        if "all" in self.layers and len(self.layers) > 1:
            raise ConfigError(f"layers: {','.join(map(str, self.layers))}; all, or numbers")
        if self.pairs == 1:
            raise ConfigError("pairs: 1; 0 for none, or at least 2 channels")
