"""Greedy training of a chain of metric predictors: every layer descends its own loss.

The loss of layer i is the cross entropy of the labels and its prediction q_i, less a weight times a distance of q_i from q_{i+1} (the
Amended Cross Entropy of Shoham & Permuter 2020, arXiv:2007.08140, and variants of it). Losses and their gradients for the logits are in
closed form, because autograd's bookkeeping costs more than these small tensors. Tensors are [R, K, L, B] (networks, classes, layers,
samples): the classes are a slow axis, so that operations on them run along the samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hardbench.metrics.anchors import FLOOR
from hardbench.models.gmlp import GreedyStack
from hardbench.models.networks import Networks
from hardbench.products import ALIGNED, row_means, sum_over
from hardbench.settings import TrainingSettings
from hardbench.training.learners import Learner, hits


def log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax over the classes of [R, K, L, B]; every layer's numbers as if it stood alone (kernels round by alignment)."""
    if logits.shape[-1] % ALIGNED == 0:
        return logits.log_softmax(1)
    return torch.cat([layer.log_softmax(1) for layer in logits.split(1, 2)], 2)


def local_losses(log_q: Tensor, log_after: Tensor, labels: Tensor, weights: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """H(y, q) - weight ACE(q, after), [R, L, B] in nats, and its gradient for the logits of q [R, K, L, B].

    q and the constants after are given by their logarithms [R, K, L, B]; labels [R, B]; weights [L, 1]. No logarithm in ACE is below
    ln 1e-12; H(y, q) has no floor, so that it always has a slope.
    """
    q = log_q.exp()
    truth = (labels.unsqueeze(1) == torch.arange(q.shape[1], device=q.device).unsqueeze(1)).unsqueeze(2).float()
    where = labels.unsqueeze(1).unsqueeze(2).expand(-1, -1, q.shape[2], -1)
    distances, slopes = ACE[variant](q, log_q, log_after)
    slopes = slopes.addcmul_(q, sum_over(slopes, 1).unsqueeze(1), value=-1)  # through the softmax
    return -log_q.gather(1, where).squeeze(1) - weights * distances, (q - truth).addcmul_(weights, slopes, value=-1)


def _entropy(a: Tensor, log_b: Tensor) -> Tensor:
    """H(a, b) = -sum_c a_c ln b_c over classes."""
    return -sum_over(a * log_b.clamp_min(FLOOR), 1)


def _to_next(q: Tensor, log_q: Tensor, log_after: Tensor) -> tuple[Tensor, Tensor]:
    terms = -(q * log_after.clamp_min(FLOOR))
    return sum_over(terms, 1), terms


def _from_next(q: Tensor, log_q: Tensor, log_after: Tensor) -> tuple[Tensor, Tensor]:
    after = log_after.exp()
    return _entropy(after, log_q), -(after * (log_q > FLOOR))


def _js(q: Tensor, log_q: Tensor, log_after: Tensor) -> tuple[Tensor, Tensor]:
    after = log_after.exp()
    middle = (q + after) / 2
    log_middle = middle.log().clamp_min(FLOOR)
    distance = _entropy(middle, log_middle) - (_entropy(q, log_q) + _entropy(after, log_after)) / 2
    return distance, q * (log_q.clamp_min(FLOOR) - log_middle) / 2


def _sym_kl(q: Tensor, log_q: Tensor, log_after: Tensor) -> tuple[Tensor, Tensor]:
    (to_next, slope_to), (from_next, slope_from) = _to_next(q, log_q, log_after), _from_next(q, log_q, log_after)
    distance = to_next - _entropy(q, log_q) + from_next - _entropy(log_after.exp(), log_after)
    return distance, slope_to + q * log_q.clamp_min(FLOOR) + slope_from


ACE: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "ce_i_next": _to_next,
    "ce_next_i": _from_next,
    "js": _js,
    "sym_kl": _sym_kl,
}
"""Distance of q = q_i from the constant after = q_{i+1} per sample [R, L, B], of q, ln q and ln after [R, K, L, B]: cross entropies,
Jensen-Shannon, symmetric KL; and its slopes q_c dD/dq_c [R, K, L, B], up to a multiple of q, which the softmax removes."""


class Greedy(Learner):
    """Greedy training of a chain of metric predictors: every layer descends its own loss.

    One backward pass serves all local losses: each layer's input is detached, so that the loss L_i reaches layer i alone. Optimisers work
    element by element, so that one over all layers equals one per layer. And one forward pass serves both predictions: q_{i+1}, computed
    by the next layer before its update from the detached h_i, is the prediction of that layer in the same pass.
    """

    def __init__(self, networks: GreedyStack, settings: TrainingSettings, total_steps: int):
        super().__init__(networks, settings, total_steps)
        self.greedy = networks
        self.depth = len(networks.blocks)
        self.lambdas = torch.full((self.depth, 1), float(settings.lambda_ace), device=self.device)
        self.lambdas[-1] = 0  # the last layer has no next one

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Put the gradients of the local losses into the parameters.

        Returns cross entropy and accuracy of the last layer [R], local loss and accuracy of every layer [R, L].
        """
        with self.arithmetic():
            logits = self.greedy.layer_logits(self.greedy.detached_activations(inputs))
        logits = logits.float()  # [R, L, B, K]
        with torch.no_grad():
            log_q = log_softmax(logits.permute(0, 3, 1, 2))
            log_after = torch.cat([log_q[:, :, 1:], log_q[:, :, -1:]], 2)  # of the last layer anything: its weight is 0
            per_sample, slopes = local_losses(log_q, log_after, labels, self.lambdas, self.settings.ace_variant)
            losses = row_means(per_sample.flatten(0, 1)).view(per_sample.shape[:-1])
            accuracies = hits(logits.flatten(0, 1), labels.repeat_interleave(self.depth, 0)).view(losses.shape)
        logits.backward(slopes.div_(labels.shape[1]).permute(0, 2, 3, 1))
        return {"loss": losses[:, -1], "accuracy": accuracies[:, -1], "layer_loss": losses, "layer_accuracy": accuracies}


def make_learner(networks: Networks, settings: TrainingSettings, total_steps: int) -> Learner:
    """The learner for these networks: greedy for greedy networks, else backpropagation."""
    if isinstance(networks, GreedyStack):
        return Greedy(networks, settings, total_steps)
    return Learner(networks, settings, total_steps)
