"""Text to token ids: what a supernet that reads text does first, in the worker.

Source: WordPiece, as the library `tokenizers` has it; the artifact's tokenizer.json says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

FILE = "tokenizer.json"
FEW = 64
STEP = 8  # batches are padded to a multiple of this many tokens


class TokeniserError(RuntimeError):
    """A tokenizer.json is missing or unreadable; the message names the file."""


class Tokeniser:
    """Texts to a batch of token ids, padded with 0 to the longest; what exceeds `max_tokens` is cut off."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()
        self._tokenizer, self.max_tokens = tokenizer, max_tokens

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> Tokeniser:
        """Read tokenizer.json from a model folder. Raises: TokeniserError."""
        path = folder / FILE
        if not path.is_file():
            raise TokeniserError(f"{path} is missing")
        try:
            return cls(Tokenizer.from_file(str(path)), max_tokens)
        except Exception as error:  # tokenizers raises nothing more exact
            raise TokeniserError(f"{path} is no tokenizer: {error}") from error

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts -> ids [B, L] int64, L a multiple of 8 up to `max_tokens`."""
        if len(texts) <= FEW:  # in this thread: a worker has one core
            encodings = [self._tokenizer.encode(text) for text in texts]
        else:
            encodings = self._tokenizer.encode_batch(list(texts))
        ids = [encoding.ids for encoding in encodings]
        longest = min(-(-max(map(len, ids), default=1) // STEP) * STEP, self.max_tokens)
        batch = torch.zeros(len(ids), max(longest, 1), dtype=torch.int64)
        for row, tokens in enumerate(ids):
            batch[row, : len(tokens)] = torch.tensor(tokens)
        return batch
