"""Influence: which training samples a test sample owes its right classification to, from networks trained on random shares of the data."""

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import Array

TOP = 10  # training samples that are kept of each test sample
SHOWN = 12  # test samples in a gallery
CELLS = 2**22  # pairs of a test and a training sample that are looked at at once


def influence(test_right: Tensor, membership: Tensor, top: int = TOP, block: int | None = None) -> dict[str, Array]:
    """The training samples with the largest influence on each test sample, and how large it is, from R networks.

    test_right: bool [R, M], where a network classifies a test sample right; membership: bool [R, N], the samples it was trained on.
    Influence of training sample i on test sample j is Pr_r[right on j | i in] - Pr_r[right on j | i out], in [-1, 1]: how much more often
    j is right where i was trained on (Feldman & Zhang 2020, eq. 2, arXiv:2008.03703). Back come, largest first, `influence_train` int64
    [M, top], rows of the training samples, and `influence` and `influence_stderr` float32 [M, top]; also `influence_networks`, R. Of
    equal influences the lower row comes first. Samples that all networks were trained on, or none, have no influence; where fewer than
    `top` have one, rows are -1 and numbers nan.

    The standard error is the binomial one of a difference of two shares, sqrt(p(1-p)/n + q(1-q)/m), in its add-one form: one success and
    one failure are added to either group first (Agresti & Caffo 2000, Am. Stat. 54, p. 280), since a share of 0 or 1, which the largest
    influences have, would else have the error 0, even from a single network. It belongs to one pair chosen beforehand. The largest of N
    estimates is too large: noise alone reaches about sqrt(2 ln N) standard errors, 4.5 for 20 000 samples, and
    more from few networks: with 20 of them what is found is noise.

    Test samples are taken `block` at a time (default: 4 million pairs at once), so that memory does not grow with N x M.
    """
    (repeats, tests), samples = test_right.shape, membership.shape[1]
    inside, right = membership.float(), test_right.float()
    with_it = inside.sum(0)  # [N] networks
    without = repeats - with_it
    defined = (with_it > 0) & (without > 0)
    kept = min(top, samples)
    rows = torch.full((tests, top), -1)
    values, errors = torch.full((2, tests, top), torch.nan)
    step = block or max(1, CELLS // max(samples, 1))
    for first in range(0, tests, step):
        part = slice(first, first + step)
        hits = right[:, part].T @ inside  # [B, N] counts, exact in float32
        hits_without = right[:, part].sum(0).unsqueeze(1) - hits  # right without it
        difference = (hits / with_it - hits_without / without).masked_fill(~defined, -torch.inf)
        order = _largest(difference, kept)
        largest = difference.gather(1, order)
        known = largest.isfinite()
        rows[part, :kept] = torch.where(known, order, -1)
        values[part, :kept] = torch.where(known, largest, torch.nan)
        variance = _variance(hits.gather(1, order), with_it[order]) + _variance(hits_without.gather(1, order), without[order])
        errors[part, :kept] = torch.where(known, variance.sqrt(), torch.nan)
    found = {"influence_train": rows.numpy(), "influence": values.numpy(), "influence_stderr": errors.numpy()}
    return found | {"influence_networks": np.array(repeats)}


def gallery(found: dict[str, Array], inputs: Tensor, test_inputs: Tensor, count: int = SHOWN) -> dict[str, Array]:
    """The `count` test samples with the clearest supporter, each with all of its own: what a figure shows of `influence`.

    Clearest: the largest influence stands the most standard errors above 0; by influence alone came those of the fewest networks.

    inputs: [N, ...] of the training samples; test_inputs: [M, ...]. `influence_shown` int64 [G], rows of the test samples, clearest first;
    `influence_inputs` [G, ...], theirs, and `influence_supporters` [G, top, ...], zeros where there is no supporter. A test sample that
    no training sample supports (influence 0 or below, or none) is left out, so that there may be fewer, or none.
    """
    clear = torch.from_numpy(found["influence"] / found["influence_stderr"]).nan_to_num(-1).amax(1)
    order = clear.sort(descending=True, stable=True).indices
    shown = order[clear[order] > 0][:count]
    rows = torch.from_numpy(found["influence_train"])[shown]
    supporters = inputs[rows.clamp(min=0)]
    supporters[rows < 0] = 0
    return {"influence_shown": shown.numpy(), "influence_inputs": test_inputs[shown].numpy(), "influence_supporters": supporters.numpy()}


def _largest(values: Tensor, count: int) -> Tensor:
    """Columns of the `count` largest of each row of values [B, N], [B, count], largest first; of equal ones the lower column first."""
    bound = values.topk(count).values[:, -1:]
    above, tied = values > bound, values == bound
    room = count - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))
    columns = chosen.nonzero()[:, 1].view(-1, count)
    order = values.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def _variance(hits: Tensor, count: Tensor) -> Tensor:
    """Variance of a share of `hits` in `count`, of which one more is a success and one more a failure."""
    share = (hits + 1) / (count + 2)
    return share * (1 - share) / (count + 2)
