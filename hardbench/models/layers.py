"""Building blocks: plain chains of layers, and R of them as one module, stacked into batched products or looped."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardbench.errors import ConfigError, TrainingError
from hardbench.models.anchors import Anchors, StackedAnchors
from hardbench.models.dropout import Dropout, StackedDropout, own_streams
from hardbench.products import ALIGNED, product
from hardbench.seeding import Seeds

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
}


class Chain(nn.Module):
    """One network as plain PyTorch: hidden blocks in sequence, then a head that turns the last activations into logits."""

    def __init__(self, blocks: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = head

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Output of every hidden block, [B, ...] each."""
        found = []
        for block in self.blocks:
            inputs = block(inputs)
            found.append(inputs)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.head(self.blocks(inputs))


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        return inputs + self.block(inputs)


class UnitScale(nn.Module):
    """Activations [..., D] scaled to a root mean square of 1, so that a layer cannot read the length of its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        factor = wide.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        return inputs * factor.to(inputs.dtype)


class StackedLinear(nn.Module):
    """R linear layers as one batched product: [R, B, in] -> [R, B, out].

    Weights are kept [R, in * out] with every member's block padded to 16 floats: a fused optimiser rounds the tail of a
    tensor in other ways than its body, and no member may have a tail that depends on how many stand behind it.
    """

    def __init__(self, members: Sequence[nn.Linear]):
        super().__init__()
        first = members[0]
        self.inputs, self.outputs = first.in_features, first.out_features
        self.weight = nn.Parameter(_padded([m.weight.detach().t().flatten() for m in members]))
        self.bias = nn.Parameter(_padded([m.bias.detach() for m in members]))

    def forward(self, inputs: Tensor) -> Tensor:
        """[R, B, out]."""
        weight, bias = self.unpadded()
        return product(inputs, weight, bias.unsqueeze(1))

    def columns(self, inputs: Tensor) -> Tensor:
        """[R, out, N] from samples as columns: [in, N] that all networks share, by ONE product R * out rows high, or [R, in, N].

        A wide product rounds in other ways than R narrow ones: a network here equals itself alone within rounding, not bit for bit.
        """
        weight, bias = self.unpadded()
        turned = weight.transpose(1, 2)
        wide = inputs.ndim == 2
        found = (turned.flatten(0, 1) @ inputs).unflatten(0, (-1, self.outputs)) if wide else turned @ inputs
        return found.add_(bias.to(found.dtype).unsqueeze(2))  # in place and in the product's precision: memory is what an epoch waits for

    def unpadded(self) -> tuple[Tensor, Tensor]:
        """Weights [R, in, out] and biases [R, out] without their padding."""
        count = self.inputs * self.outputs
        weight = self.weight if self.weight.shape[1] == count else self.weight[:, :count]
        bias = self.bias if self.bias.shape[1] == self.outputs else self.bias[:, : self.outputs]
        return weight.view(-1, self.inputs, self.outputs), bias

    def tensors(self, r: int) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Views of member r's block by name, each with the rule from its flat form to nn.Linear's."""
        count = self.inputs * self.outputs
        return {
            "weight": (self.weight[r, :count], lambda flat: flat.view(self.inputs, self.outputs).t()),
            "bias": (self.bias[r, : self.outputs], lambda flat: flat),
        }


def _padded(rows: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(rows))
    return functional.pad(stacked, (0, -stacked.shape[1] % ALIGNED)).contiguous()


class Networks(nn.Module):
    """R independent networks of one shape. `member(r)` is network r alone, as plain PyTorch."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__()
        for wrong in (type(member).__name__ for member in members if not isinstance(member, Chain)):
            raise TypeError(f"{type(self).__name__} of {wrong}; of Chain(blocks, head), whose hidden layers can be seen")
        self.repeats = len(members)
        self.input_ndim = len(input_shape)
        self._plain = [copy.deepcopy(members[0])]  # in a list: a template, not a submodule

    def _of_member(self, inputs: Tensor, r: int) -> Tensor:
        return inputs if inputs.ndim == self.input_ndim + 1 else inputs[r]

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

    def member_state(self, r: int) -> dict[str, Tensor]:
        """state_dict of network r as plain PyTorch, copied."""
        raise NotImplementedError

    def load_member(self, r: int, state: dict[str, Tensor]) -> None:
        """Put a plain network's state_dict into place r; TrainingError if it is none of this shape."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [R, B, K]."""
        return self.logits(self.features(inputs))

    def _dropouts(self) -> list[tuple[Dropout, torch.device]]:
        device = next(self.parameters()).device
        return [(module, device) for module in self.modules() if isinstance(module, Dropout)]

    def streams(self) -> list[Tensor]:
        """Where the random streams inside the networks (dropout) stand."""
        return [module.stream(device).get_state() for module, device in self._dropouts()]

    def load_streams(self, states: Sequence[Tensor]) -> None:
        """Put the random streams where `streams` found them."""
        for (module, device), state in zip(self._dropouts(), states, strict=True):
            module.stream(device).set_state(state.clone())

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
        own = self._plain[0].state_dict()
        if not isinstance(state, Mapping):
            raise TrainingError("checkpoint: networks; a state_dict of each")
        for name in [*(own.keys() - state.keys()), *(state.keys() - own.keys())]:
            raise TrainingError(f"checkpoint: {name}; {'missing' if name in own else 'no such tensor in this network'}")
        for name, tensor in own.items():
            came = state[name]
            if not isinstance(came, Tensor) or came.shape != tensor.shape or came.dtype != tensor.dtype:
                what = f"{list(came.shape)} {came.dtype}" if isinstance(came, Tensor) else type(came).__name__
                raise TrainingError(f"checkpoint: {name} {what}; {list(tensor.shape)} {tensor.dtype} in this network")

    def member(self, r: int) -> Chain:
        """Network r as plain PyTorch, its own copy."""
        plain = copy.deepcopy(self._plain[0])
        plain.load_state_dict(self.member_state(r))
        return plain


class Stacked(Networks):
    """Chains of linear layers as batched products over R."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__(members, input_shape)
        alone = unstackable(members[0])
        if alone is not None:
            raise ConfigError(f"model: {alone} has no stacked form; stack_or_loop(members, input_shape) in place of {type(self).__name__}")
        self.blocks = nn.ModuleList(_stacked([m.blocks[i] for m in members]) for i in range(len(members[0].blocks)))
        self.head = _stacked([m.head for m in members])

    def rows(self, inputs: Tensor) -> Tensor:
        """Inputs as vectors [R, B, D], shared ones expanded."""
        flat = inputs.flatten(-self.input_ndim)
        return flat.expand(self.repeats, -1, -1) if flat.ndim == 2 else flat

    def parts(self, active: Sequence[bool]) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """One part: all networks, the inactive ones too (their products come for nothing)."""
        yield slice(0, self.repeats), self

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Per hidden layer [R, B, D]."""
        found, hidden = [], self.rows(inputs)
        for block in self.blocks:
            hidden = block(hidden)
            found.append(hidden)
        return found

    def logits(self, features: Tensor) -> Tensor:
        """[R, B, K]."""
        return self.head(features)

    def columns(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations of every hidden layer [R, D, N] and logits [R, K, N] of N samples that all networks share, as columns [D, N].

        The form of full batches: what is narrow stays the slow axis, so that everything elementwise runs along the samples. For chains
        of linear layers and elementwise functions.
        """
        found = []
        for block in self.blocks:
            for module in block.children():
                inputs = module.columns(inputs) if isinstance(module, StackedLinear) else module(inputs)
            found.append(inputs)
        assert isinstance(self.head, StackedLinear)
        return found, self.head.columns(inputs)

    def _tensors(self, r: int) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
        for path, module in self.named_modules():
            if isinstance(module, StackedLinear | StackedAnchors):
                for name, (view, plain) in module.tensors(r).items():
                    yield f"{path}.{name}", view, plain

    def member_state(self, r: int) -> dict[str, Tensor]:
        """state_dict of network r as plain PyTorch."""
        return {name: plain(view.detach()).clone(memory_format=torch.contiguous_format) for name, view, plain in self._tensors(r)}

    def load_member(self, r: int, state: dict[str, Tensor]) -> None:
        """Put a plain network's state_dict into place r."""
        self.check(state)
        with torch.no_grad():
            for name, view, plain in self._tensors(r):
                plain(view).copy_(state[name])


class Looped(Networks):
    """R plain networks one after the other: convolutions do not gain from stacking on a CPU, batch norm must not mix members."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__(members, input_shape)
        self.members = nn.ModuleList(member.to(memory_format=torch.channels_last) for member in members)

    def _chain(self, r: int) -> Chain:
        member = self.members[r]
        assert isinstance(member, Chain)
        return member

    def parts(self, active: Sequence[bool]) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """One part per active network, so that only one graph is held at a time."""
        for r in range(self.repeats):
            if active[r]:
                yield slice(r, r + 1), functools.partial(self._logits_of, r)

    def _logits_of(self, r: int, inputs: Tensor) -> Tensor:
        return self._chain(r)(self._image(inputs, r)).unsqueeze(0)

    def _image(self, inputs: Tensor, r: int) -> Tensor:
        own = self._of_member(inputs, r)
        return own.clone(memory_format=torch.channels_last if own.ndim == 4 else torch.contiguous_format)  # kernels round by alignment

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Per hidden block [R, B, D], flattened."""
        each = [self._chain(r).activations(self._image(inputs, r)) for r in range(self.repeats)]
        return [torch.stack([found.flatten(1) for found in layer]) for layer in zip(*each, strict=True)]

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden block's activations [R, B, D], without keeping the others."""
        return torch.stack([self._chain(r).blocks(self._image(inputs, r)).flatten(1) for r in range(self.repeats)])

    def logits(self, features: Tensor) -> Tensor:
        """[R, B, K]."""
        return torch.stack([self._chain(r).head(features[r].clone()) for r in range(self.repeats)])

    def member_state(self, r: int) -> dict[str, Tensor]:
        """state_dict of network r."""
        return {name: tensor.detach().clone() for name, tensor in self.members[r].state_dict().items()}

    def load_member(self, r: int, state: dict[str, Tensor]) -> None:
        """Put a plain network's state_dict into place r."""
        self.check(state)
        self.members[r].load_state_dict(state)


_SHARED = (*(type(make()) for make in ACTIVATIONS.values()), nn.Identity, UnitScale)  # what is done to [R, B, D] as to [B, D]


def stack_or_loop(members: Sequence[Chain], input_shape: Sequence[int]) -> Networks:
    """R networks as batched products where every module has a stacked form, else one after the other."""
    return (Looped if unstackable(members[0]) else Stacked)(members, input_shape)


def unstackable(chain: Chain) -> str | None:
    """The first module of a chain that has no stacked form, `LayerNorm at blocks.0.1`; None if all have one.

    Only what is known here has one: another module may have parameters, buffers, a random stream, or take the axis R for a batch.
    """
    seen: set[int] = set()  # what two places share has no stacked form either
    for path, module in chain.named_modules(remove_duplicate=False):
        kind = type(module)
        own = {"": module} if kind is Dropout else dict(module.named_parameters(recurse=False))
        known = kind in (Chain, nn.Sequential, Residual, Dropout, Anchors, *_SHARED) and (kind is Dropout or not own)
        if isinstance(module, nn.Flatten):
            known = (module.start_dim, module.end_dim) == (1, -1)
        elif kind is nn.Linear:
            known = own.keys() == {"weight", "bias"} and all(one.requires_grad for one in module.parameters())
        if not known or any(id(one) in seen for one in own.values()):
            return f"{kind.__name__} at {path}" if path else kind.__name__
        seen.update(map(id, own.values()))
    return None


def _stacked(members: Sequence[nn.Module]) -> nn.Module:
    """R modules of one kind as one: linear layers, anchors and dropout stacked, sequences member by member, activations shared."""
    first = members[0]
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(_stacked([m[i] for m in members if isinstance(m, nn.Sequential)]) for i in range(len(first))))
    if isinstance(first, Residual):
        return Residual(_stacked([m.block for m in members if isinstance(m, Residual)]))
    if isinstance(first, nn.Linear):
        return StackedLinear([m for m in members if isinstance(m, nn.Linear)])
    if isinstance(first, Anchors):
        return StackedAnchors([m for m in members if isinstance(m, Anchors)])
    if isinstance(first, Dropout):
        return StackedDropout([m for m in members if isinstance(m, Dropout)])
    return nn.Identity() if isinstance(first, nn.Flatten) else first


def initialise(network: nn.Module, how: str | None) -> nn.Module:
    """The network with its Linear and Conv weights drawn as `init` says and biases 0; `default` leaves PyTorch's own."""
    draw = {"kaiming_normal": nn.init.kaiming_normal_, "kaiming_uniform": nn.init.kaiming_uniform_}.get(how or "default")
    if draw is not None:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                draw(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network


def init_members(make: Callable[[], Chain], streams: Sequence[Seeds], init: str | None) -> list[Chain]:
    """One freshly initialised chain per stream."""
    members = []
    for seeds in streams:
        with seeds.child("init").as_global():
            chain = make()
            initialise(chain, init)
        own_streams(chain, seeds)
        members.append(chain)
    return members


def image_side(model: str, input_shape: Sequence[int]) -> tuple[int, int]:
    """Channels and shorter side of image inputs; ConfigError for vectors."""
    if len(input_shape) != 3:
        raise ConfigError(f"model: {model}; takes images, and the data set has vectors of {input_shape[0]} (mlp and gmlp take both)")
    return input_shape[0], min(input_shape[1:])
