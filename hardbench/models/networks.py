"""R networks of one shape as one module: looped, one plain network after the other, or stacked into batched products."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hardbench.errors import TrainingError
from hardbench.models.dropout import Dropout
from hardbench.models.layers import Chain


class Networks(nn.Module):
    """R independent networks of one shape, with one interface whatever their form. `member(r)` is network r alone, as plain PyTorch."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__()
        for kind in (type(member).__name__ for member in members if not isinstance(member, Chain)):
            raise TypeError(f"{type(self).__name__} of {kind}; of Chain(blocks, head), whose hidden layers can be seen")
        self.repeats = len(members)
        self.input_ndim = len(input_shape)
        self._plain = [copy.deepcopy(members[0])]  # in a list: a template, not a submodule

    def parts(self, active: Sequence[bool]) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """The repeats that share a forward pass, as a slice of R with the function from the whole batch to their logits [r, B, K]."""
        raise NotImplementedError

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Per hidden layer [R, B, D] (convolutional ones flattened), from inputs [B, ...] shared by all or [R, B, ...]."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden layer's activations [R, B, D]."""
        return self.activations(inputs)[-1]

    def logits(self, features: Tensor) -> Tensor:
        """[R, B, K] from the last layer's activations [R, B, D]."""
        raise NotImplementedError

    def tensors(self, r: int) -> Mapping[str, Tensor]:
        """The parameters and buffers of network r, by the names and in the shapes of plain PyTorch: views that can be written to."""
        raise NotImplementedError

    def member_state(self, r: int) -> dict[str, Tensor]:
        """state_dict of network r as plain PyTorch, copied."""
        return {name: view.clone(memory_format=torch.contiguous_format) for name, view in self.tensors(r).items()}

    def load_member(self, r: int, state: dict[str, Tensor]) -> None:
        """Put a plain network's state_dict into place r; TrainingError if it is none of this shape."""
        self.check(state)
        for name, view in self.tensors(r).items():
            view.copy_(state[name])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [R, B, K]."""
        return self.logits(self.features(inputs))

    def _generators(self) -> list[torch.Generator]:
        device = next(self.parameters()).device
        return [module.stream(device) for module in self.modules() if isinstance(module, Dropout)]

    def streams(self) -> list[Tensor]:
        """States of the random streams inside the networks (dropout)."""
        return [generator.get_state() for generator in self._generators()]

    def load_streams(self, states: Sequence[Tensor]) -> None:
        """Put the random streams back to the states that `streams` gave."""
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state.clone())

    def states(self) -> list[dict[str, Tensor]]:
        """state_dict of every network as plain PyTorch, in the order of the repeats."""
        return [self.member_state(r) for r in range(self.repeats)]

    def load_states(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Put R plain networks' state_dicts into place; TrainingError unless they are R of this shape."""
        if not isinstance(states, list) or len(states) != self.repeats:
            raise TrainingError(f"checkpoint: {len(states) if isinstance(states, list) else 'no'} networks; {self.repeats} in this run")
        for r, state in enumerate(states):
            self.load_member(r, state)

    def restore(self, states: Sequence[dict[str, Tensor]]) -> None:
        """`load_states` of what a finished training has stored: its weights are finite, or it is a TrainingError."""
        self.load_states(states)
        for r, name in ((r, name) for r, state in enumerate(states) for name, tensor in state.items() if not tensor.isfinite().all()):
            raise TrainingError(f"checkpoint: {name} of network {r} is not finite; finite weights")

    def check(self, state: Mapping[str, Tensor]) -> None:
        """TrainingError unless a state_dict has the names, shapes and types of one of these networks."""
        expected = self._plain[0].state_dict()
        if not isinstance(state, Mapping):
            raise TrainingError("checkpoint: networks; a state_dict of each")
        for name in [*(expected.keys() - state.keys()), *(state.keys() - expected.keys())]:
            raise TrainingError(f"checkpoint: {name}; {'missing' if name in expected else 'no such tensor in this network'}")
        for name, tensor in expected.items():
            given = state[name]
            if not isinstance(given, Tensor) or given.shape != tensor.shape or given.dtype != tensor.dtype:
                what = f"{list(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
                raise TrainingError(f"checkpoint: {name} {what}; {list(tensor.shape)} {tensor.dtype} in this network")

    def member(self, r: int) -> Chain:
        """Network r as plain PyTorch, its own copy."""
        plain = copy.deepcopy(self._plain[0])
        plain.load_state_dict(self.member_state(r))
        return plain


class Looped(Networks):
    """R plain networks one after the other: convolutions do not gain from stacking on a CPU, batch norm must not mix members."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__(members, input_shape)
        self._chains = [member.to(memory_format=torch.channels_last) for member in members]
        self.members = nn.ModuleList(self._chains)

    def parts(self, active: Sequence[bool]) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """One part per active network, so that only one graph is held at a time."""
        for r in range(self.repeats):
            if active[r]:
                yield slice(r, r + 1), functools.partial(self._logits_of, r)

    def _logits_of(self, r: int, inputs: Tensor) -> Tensor:
        return self._chains[r](self._image(inputs, r)).unsqueeze(0)

    def _image(self, inputs: Tensor, r: int) -> Tensor:
        batch = inputs if inputs.ndim == self.input_ndim + 1 else inputs[r]
        return batch.clone(memory_format=torch.channels_last if batch.ndim == 4 else torch.contiguous_format)  # kernels round by alignment

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Per hidden block [R, B, D], flattened."""
        members = [chain.activations(self._image(inputs, r)) for r, chain in enumerate(self._chains)]
        return [torch.stack([hidden.flatten(1) for hidden in layer]) for layer in zip(*members, strict=True)]

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden block's activations [R, B, D], without keeping the others."""
        return torch.stack([chain.blocks(self._image(inputs, r)).flatten(1) for r, chain in enumerate(self._chains)])

    def logits(self, features: Tensor) -> Tensor:
        """[R, B, K]."""
        return torch.stack([chain.head(features[r].clone()) for r, chain in enumerate(self._chains)])

    def tensors(self, r: int) -> Mapping[str, Tensor]:
        """state_dict of network r."""
        return self.members[r].state_dict()
