"""Full-batch training of R networks on one data set that lies on the device once: every step sees all of it.

Subsets are weights 0 and 1, so that networks trained on different subsets share the wide products all the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hardbench.models.stacked import Stacked
from hardbench.settings import TrainingSettings
from hardbench.training.learners import Learner


@dataclass(frozen=True)
class ForwardPass:
    """Results of one pass over the data, without gradients: activations of every hidden layer [R, D, N], logits [R, K, N]."""

    activations: list[Tensor]
    logits: Tensor


class FullBatch(Learner):
    """Backpropagation of the weighted cross entropy, all samples at once: loss = sum_n w_n ce_n / sum_n w_n, and so the accuracy.

    `weights` [R, N] say which samples each network learns from (None: all of them). After an update `last_pass` is its forward pass, by
    the network's weights from BEFORE the update: measuring the network after t updates at step t + 1 costs no pass of its own.
    Networks in a stack equal networks alone within rounding (`StackedLinear.columns`).
    """

    def __init__(self, networks: Stacked, settings: TrainingSettings, total_steps: int, weights: Tensor | None = None):
        super().__init__(networks, settings, total_steps)
        self.stacked = networks
        self.weights = weights
        self.last_pass: ForwardPass | None = None
        self._share = None if weights is None else weights / weights.sum(1, keepdim=True)
        self._source: Tensor | None = None
        self._columns = torch.empty(0)

    def columns(self, inputs: Tensor) -> Tensor:
        """Inputs [N, ...] as columns [D, N] in the precision of the products; kept, since every step has the same."""
        if self._source is not inputs:
            dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
            self._source, self._columns = inputs, inputs.flatten(1).to(dtype).t().contiguous()
        return self._columns

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients into the parameters; loss and accuracy [R] over each network's samples. inputs [N, ...], labels [R, N]."""
        with self.arithmetic():
            activations, logits = self.stacked.columns(self.columns(inputs))
        logits = logits.float()
        losses = self.losses(logits, labels)
        losses.sum().backward()
        self.last_pass = ForwardPass([layer.detach() for layer in activations], logits.detach())
        return {"loss": losses.detach(), "accuracy": self.accuracy(self.last_pass.logits, labels)}

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of each network's samples, [R] in nats, from logits [R, K, N]."""
        return self._mean(functional.cross_entropy(logits, labels, reduction="none"))

    def accuracy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Share of each network's samples whose largest logit is the label's, [R], from logits [R, K, N]."""
        return self._mean((logits.gather(1, labels.unsqueeze(1)).squeeze(1) >= logits.amax(1)).float())

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over each network's samples, [R] of values [R, N]."""
        return values.mean(1) if self._share is None else (values * self._share).sum(1)

    def forward_all(self, inputs: Tensor) -> ForwardPass:
        """A pass with the present weights; `last_pass` stays as it is."""
        columns = self.columns(inputs)  # kept for updates, so made outside inference mode
        with torch.inference_mode(), self.arithmetic():
            activations, logits = self.stacked.columns(columns)
            return ForwardPass(activations, logits.float())


def predictions(logits: Tensor) -> Tensor:
    """The class with the largest logit, int64 [R, N], from logits [R, K, N]."""
    best, classes = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.long)
    for c in range(1, logits.shape[1]):  # argmax along a slow axis is not vectorised
        larger = logits[:, c] > best
        best, classes = torch.where(larger, logits[:, c], best), torch.where(larger, c, classes)
    return classes
