"""The transformer family: an elastic BERT encoder with a classifier on the mean of its tokens.

Source: BERT (Devlin et al., 2019) for the encoder, post-norm with GELU; sentence-transformers for the mean over
tokens; DynaBERT (Hou et al., 2020) for what bends: depth, heads and neurons. The network is ordinary; what makes it
elastic is the operators that `insert` puts into it by `layout`. Attention counts its heads by the width of its
projections, so that cutting those is all that a slice needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.supernet.actuate import Elastic, Origin
from common.supernet.insert import insert
from common.supernet.layout import Group, Layout, Stage
from common.supernet.spec import Space, SpecError

FAMILY = "bert-classifier"
SHARES = (25, 50, 75, 100)  # percent of heads and of neurons


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a classifier is built from. positions: the longest text in tokens; eps: of the layer norms."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    neurons: int
    positions: int
    classes: int
    eps: float = 1e-12

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read `to_json` back. Raises SpecError naming a missing, unknown or malformed key."""
        wrong = sorted(set(data) ^ set(cls.__slots__))
        if wrong:
            raise SpecError(f"architecture.{wrong[0]} is {'unknown' if wrong[0] in data else 'missing'}")
        counts = {key: value for key, value in data.items() if key != "eps"}
        for key, value in counts.items():
            if type(value) is not int or value < 1:
                raise SpecError(f"architecture.{key} must be a positive integer, got {value!r}")
        if data["hidden"] % data["heads"]:
            raise SpecError(f"architecture.hidden {data['hidden']} is no multiple of heads {data['heads']}")
        return cls(**counts, eps=float(data["eps"]))


class Embeddings(nn.Module):
    """Word and position, added and normalised. A token type, where BERT has one, is added to the positions."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.word = nn.Embedding(architecture.vocabulary, architecture.hidden)
        self.position = nn.Embedding(architecture.positions, architecture.hidden)
        self.norm = nn.LayerNorm(architecture.hidden, architecture.eps)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [B, L] -> [B, L, hidden]."""
        out: Tensor = self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])
        return out


class Layer(nn.Module):
    """Attention and feed-forward network, each added to what it read and normalised."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        hidden = architecture.hidden
        self.head_size = hidden // architecture.heads
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.output = nn.Linear(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden, architecture.eps)
        self.up = nn.Linear(hidden, architecture.neurons)
        self.down = nn.Linear(architecture.neurons, hidden)
        self.norm2 = nn.LayerNorm(hidden, architecture.eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, L, hidden]; mask: [B, 1, 1, L], true at real tokens; None where all are -> [B, L, hidden]."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # [B, heads, L, head_size]
            for projection in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, mask)
        x = self.norm1(x + self.output(attended.transpose(1, 2).flatten(2)))  # [B, L, hidden]
        out: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return out


class TextClassifier(nn.Module):
    """The whole network, in ordinary modules."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embeddings = Embeddings(architecture)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.classifier = nn.Linear(architecture.hidden, architecture.classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: [B, L], 0 is padding -> hidden states [B, longest, hidden], mask of real tokens [B, longest]."""
        real = ids != 0
        longest = max(int(real.sum(1).max()), 1)
        ids, real = ids[:, :longest], real[:, :longest]
        mask = None if bool(real.all()) else real[:, None, None]
        x = self.embeddings(ids)  # [B, longest, hidden]
        for layer in self.layers:
            x = layer(x, mask)
        return x, real

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [B, L] int64, 0 is padding -> scores before softmax [B, classes]."""
        x, real = self.encode(ids)
        weight = real.unsqueeze(2).to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1)  # [B, hidden]
        scores: Tensor = self.classifier(mean)
        return scores


def layout(architecture: Architecture) -> Layout:
    """Where it bends: its layers, every other one of which goes; the heads and the neurons of each."""
    names = [f"layers.{layer}" for layer in range(architecture.layers)]
    head = architecture.hidden // architecture.heads
    return Layout(
        stages=(Stage("layers", tuple(map(str, range(architecture.layers))), "every_other"),),
        widths=tuple(
            Group(architecture.hidden, (f"{n}.query", f"{n}.key", f"{n}.value"), (f"{n}.output",), unit=head)
            for n in names
        ),
        expands=tuple(Group(architecture.neurons, (f"{n}.up",), (f"{n}.down",), divisor=8) for n in names),
    )


def space(architecture: Architecture) -> Space:
    """Every depth; a quarter, half, three quarters or all of the heads and of the neurons of each layer."""
    shares = (SHARES,) * architecture.layers
    return Space(depth=(tuple(range(1, architecture.layers + 1)),), width=shares, expand=shares)


def build(architecture: Architecture, of: Space | None = None) -> Elastic:
    """The untrained supernet. Raises: SpecError when the space has other layers than the architecture."""
    legal = of or space(architecture)
    if legal.lengths != (1, architecture.layers, architecture.layers):
        raise SpecError(f"space has {legal.lengths} depths, widths, expands; the network {architecture.layers} layers")
    supernet = insert(TextClassifier(architecture), layout(architecture), legal)
    supernet.origin = Origin(FAMILY, architecture.to_json())
    return supernet


def from_json(architecture: Mapping[str, Any], of: Space) -> Elastic:
    """The untrained supernet of an `Architecture.to_json()` and a space. Raises SpecError naming what is wrong."""
    return build(Architecture.from_json(architecture), of)


def from_hugging_face(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of an encoder from a Hugging Face BERT checkpoint, under our names; without a classifier.

    Raises: SpecError naming a tensor that is missing.
    """
    parts = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "output",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm2",
    }
    names = {"embeddings.LayerNorm": "embeddings.norm"}
    for layer in range(layers):
        names |= {f"encoder.layer.{layer}.{theirs}": f"layers.{layer}.{ours}" for theirs, ours in parts.items()}
    try:
        found = {
            f"{ours}.{kind}": tensors[f"{theirs}.{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
        found["embeddings.word.weight"] = tensors["embeddings.word_embeddings.weight"]
        types = tensors["embeddings.token_type_embeddings.weight"]
        found["embeddings.position.weight"] = tensors["embeddings.position_embeddings.weight"] + types[0]
    except KeyError as error:
        raise SpecError(f"the checkpoint has no tensor {error.args[0]!r}") from error
    return {name: torch.as_tensor(tensor, dtype=torch.float32) for name, tensor in found.items()}
