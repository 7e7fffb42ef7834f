"""Scores [R, N] from the course of training: means and counts over the points t at which a network was measured, and early scores.

T is the number of these points, step 0 aside; p, z, y as in at_end. nan for a network that was never measured.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES


@SCORES.add("mean_loss", reads=("time",))
def mean_loss(recording: Recording) -> Tensor:
    """mean_t(-ln p_y): cross entropy of the label in nats, at least 0."""
    return -logsigmoid(recording.traces.log_odds).nanmean(1)


@SCORES.add("aum", reads=("time",))
def aum(recording: Recording) -> Tensor:
    """-mean_t(z_y - max_{k != y} z_k): minus the area under the margin, of any sign. Pleiss et al. 2020, eq. 2 (arXiv:2001.10528)."""
    return -recording.traces.margins.nanmean(1)


@SCORES.add("data_maps_confidence", reads=("time",))
def data_maps_confidence(recording: Recording) -> Tensor:
    """1 - mean_t p_y, in [0, 1]. Swayamdipta et al. 2020 (arXiv:2009.10795), whose confidence is the mean itself."""
    return (-recording.traces.log_odds).sigmoid().nanmean(1)


@SCORES.add("data_maps_variability", reads=("time",))
def data_maps_variability(recording: Recording) -> Tensor:
    """std_t p_y (ddof 0), in [0, 1/2]: high for ambiguous samples, low for easy and for never learned ones. Swayamdipta et al. 2020."""
    error = (-recording.traces.log_odds).sigmoid()  # 1 - p_y, of the same deviation
    return (error - error.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()


@SCORES.add("data_maps_correctness", reads=("time",))
def data_maps_correctness(recording: Recording) -> Tensor:
    """1 - the share of points at which the label is predicted, in [0, 1]. Swayamdipta et al. 2020, whose correctness is the share."""
    return 1 - recording.traces.right.sum(1) / _points(recording)


@SCORES.add("aleatoric", reads=("time",))
def aleatoric(recording: Recording) -> Tensor:
    """mean_t p_y (1 - p_y), in [0, 1/4]: uncertainty that training does not remove. Data-IQ, Seedat et al. 2022 (arXiv:2210.13043)."""
    log_odds = recording.traces.log_odds
    return (log_odds.sigmoid() * (-log_odds).sigmoid()).nanmean(1)


@SCORES.add("forgetting", reads=("time",))
def forgetting(recording: Recording) -> Tensor:
    """Number of points with the label predicted at t - 1 and not at t, 0 to T / 2; T where it was never predicted.

    Toneva et al. 2019 (arXiv:1812.05159), who count at each mini-batch that has the sample and sort never learned ones last; here at
    recorded points, so that events between two points are not seen.
    """
    right, measured = recording.traces.right, recording.measured
    events = (right[:, :-1] & ~right[:, 1:] & measured[:, 1:, None]).sum(1)
    return torch.where(right.any(1), events.double(), _points(recording))


@SCORES.add("iteration_learned", reads=("time",))
def iteration_learned(recording: Recording) -> Tensor:
    """The first point, counted from 1, from which on the label is predicted at every point, 1 to T; T + 1 where there is none.

    Toneva et al. 2019 (arXiv:1812.05159); Baldock et al. 2021 (arXiv:2106.09647).
    """
    wrong = ~recording.traces.right & recording.measured.unsqueeze(-1)
    number = torch.arange(1, wrong.shape[1] + 1).view(1, -1, 1)
    return (wrong * number).amax(1) + 1 + 0 * _points(recording)  # nan without points


@SCORES.add("el2n", reads=("time",))
def el2n(recording: Recording) -> Tensor:
    """|p - o|_2 at the early point, o the label's one-hot vector, in [0, sqrt(2)]. Paul et al. 2021 (arXiv:2107.07075).

    Published as the mean over some ten networks: the ensemble value. The early point is a tenth of the epochs (`Recording.early`).
    """
    point = recording.early_point
    probabilities = recording.logits[:, point].double().softmax(-1)
    error = (-recording.traces.log_odds[:, point]).sigmoid().unsqueeze(-1)  # 1 - p_y
    labels = recording.labels.expand(len(error), -1).unsqueeze(-1)
    return torch.linalg.vector_norm(probabilities.scatter(-1, labels, error), dim=-1)


@SCORES.add("grand", reads=("time", "feature_norm"))
def grand(recording: Recording) -> Tensor:
    """|p - o|_2 sqrt(1 + |h|^2) at the early point, h the last hidden activations, at least 0.

    The norm of the loss's gradient by the weights and the bias of the last layer alone; GraNd of Paul et al. 2021 (arXiv:2107.07075) is
    that of all layers. The ensemble value is the mean over networks, as published.
    """
    assert recording.feature_norm is not None
    return el2n(recording) * (1 + recording.feature_norm[:, recording.early_point].double().square()).sqrt()


def _points(recording: Recording) -> Tensor:
    """Number of points at which each network was measured, float64 [R, 1]; nan for none."""
    count = recording.measured.sum(1, keepdim=True).double()
    return count.masked_fill(count == 0, torch.nan)
