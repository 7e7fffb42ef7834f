"""Words with a form of their own, and what they say: what is planted, and what is kept, of the training samples."""

import math

from hardbench.errors import ConfigError, brief, nearest

PLANT_TYPES = ("mislabel", "mislabel_pairs", "mislabel_close", "corrupt", "shift", "zoom", "invert", "foreign")  # see data/plant.py
UNSUSPECTED = "unsuspected"  # keep the samples that no detector suspects


def plant_shares(text: str) -> dict[str, float]:
    """The share of every type in `TYPE:SHARE,...`, in the order of PLANT_TYPES; ConfigError for anything else, or more than all samples."""
    shares: dict[str, float] = {}
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, number = (part.strip() for part in word.partition(":"))
        name = name.replace("-", "_")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if name not in PLANT_TYPES:
            raise ConfigError(f"plant: {brief(word)}; {nearest(name, PLANT_TYPES)}")
        if not 0 < share <= 1:
            raise ConfigError(f"plant: {brief(word)}; TYPE:SHARE with a share above 0 and at most 1")
        if name in shares:
            raise ConfigError(f"plant: {brief(text)}; each type once")
        shares[name] = share
    if not shares or math.fsum(shares.values()) > 1 + 1e-9:
        raise ConfigError(f"plant: {brief(text)}; TYPE:SHARE,... with at least one type, and shares that sum to 1 at most")
    return {name: shares[name] for name in PLANT_TYPES if name in shares}


def canonical_plant(text: str) -> str | None:
    """The form in which `plant` is kept: types in their order, None for none."""
    if text.strip().lower() == "none":
        return None
    return ",".join(f"{name}:{share!r}" for name, share in plant_shares(text).items())


def how_kept(word: str) -> tuple[str, float]:
    """What `keep` says: easy, hard or random with the share of the samples; unsuspected, whose share (nan) the score's detector says."""
    how, _, share = word.partition(":")
    return how, float(share) if share else math.nan


def wrong_keep(word: str) -> str | None:
    """The rule for `keep`, as text, if this word breaks it; else None."""
    try:
        how, share = how_kept(word)
    except ValueError:
        how, share = "", 0.0
    fits = word == UNSUSPECTED or (how in ("easy", "hard", "random") and 0 < share <= 1)
    return None if fits else f"easy:SHARE, hard:SHARE or random:SHARE with a share above 0 up to 1 (easy:0.8), or {UNSUSPECTED}"
