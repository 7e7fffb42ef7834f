"""The run that `--hardness` names: `last` pinned to its id, and the hard samples that it hands on."""

from hardbench import tracking
from hardbench.errors import ConfigError
from hardbench.hard_samples import sample_hardness
from hardbench.hard_samples.sample_hardness import Hardness
from hardbench.stored import StoredRun


def pinned_hardness(word: str) -> str:
    """RUN or RUN:STRATEGY with the run by its id, which goes on to mean the same run: `last` is another one tomorrow."""
    run, strategy = sample_hardness.run_and_strategy(word)
    return ":".join(filter(None, (hardness_source(run).id, strategy)))


def hardness_source(word: str) -> StoredRun:
    """The run of an id or a prefix of one; of `last` the newest finished one that has samples' hardness to hand on."""
    if word == "last":
        for stored in tracking.runs():
            artifact, _ = sample_hardness.SOURCES.get(stored.study, ("", None))
            if stored.status == "FINISHED" and artifact and stored.has(artifact):
                return stored
    return tracking.find(word, list(sample_hardness.SOURCES))


def read_hardness(word: str) -> Hardness:
    """The hard samples that RUN or RUN:STRATEGY hands on; ConfigError for a run without any."""
    run, strategy = sample_hardness.run_and_strategy(word)
    stored = hardness_source(run)
    artifact = sample_hardness.SOURCES[stored.study][0]
    if not stored.has(artifact):
        how = "train --record-dynamics" if stored.study == "train" else stored.study
        raise ConfigError(f"hardness: {stored.id}; a run of {how}, with the artifact {artifact}")
    return sample_hardness.read(stored.study, stored.id, stored.archive(artifact), strategy)
