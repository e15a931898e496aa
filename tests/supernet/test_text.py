"""The text model that ships, and what it is made of: tokens, split, encoder."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import pytest
import torch

import services.worker
from common.supernet import artifact, bert, rated_text
from common.supernet.actuate import Actuator
from common.supernet.artifact import ArtifactError
from common.supernet.data import DataError
from common.supernet.rated_text import Snippet, Texts
from common.supernet.spec import SpecError
from common.supernet.supernet import Supernet
from common.supernet.tokenise import FEW, Tokeniser, TokeniserError

FOLDER = Path(services.worker.__file__).parent / "models" / "rated-text-tiny"
SMALL = bert.Architecture(vocabulary=30, hidden=16, layers=3, heads=4, neurons=32, positions=12, classes=2)


@pytest.fixture(scope="module")
def shipped() -> Supernet:
    return artifact.load(FOLDER)


@pytest.fixture(scope="module")
def samples() -> tuple[list[str], list[int]]:
    data = json.loads((FOLDER / "samples.json").read_text())
    return data["text"], data["labels"]


@pytest.fixture(scope="module")
def measured(shipped: Supernet, samples: tuple[list[str], list[int]]) -> dict[str, float]:
    """Accuracy of each subnet on the samples."""
    texts, labels = samples
    found = {}
    for subnet in shipped.subnets:
        shipped.actuate(subnet.id)
        parts = [shipped.infer(texts[start : start + 50])["label"] for start in range(0, len(texts), 50)]
        found[subnet.id] = 100 * float((torch.cat(parts) == torch.tensor(labels)).double().mean())
    return found


def test_accuracy_is_as_stated(shipped: Supernet, measured: dict[str, float]) -> None:
    """On the shipped snippets each subnet comes within five points of its accuracy on all test snippets."""
    assert len(shipped.subnets) >= 3
    for subnet in shipped.subnets:
        assert subnet.test_accuracy is not None
        assert measured[subnet.id] == pytest.approx(subnet.test_accuracy, abs=5)


def test_subnets_ascend(shipped: Supernet) -> None:
    """The Pareto set ascends in accuracy, and its last subnet does several times the work of its first."""
    for small, large in itertools.pairwise(shipped.subnets):
        assert small.accuracy < large.accuracy
    assert shipped.subnets[-1].macs > 3 * shipped.subnets[0].macs


def test_it_can_tell(shipped: Supernet) -> None:
    """The largest subnet tells plain praise from plain blame."""
    shipped.actuate(shipped.subnets[-1].id)
    praise = ["A wonderful film, I loved every minute.", "Great phone, excellent battery and a beautiful screen."]
    blame = ["A terrible film, boring and far too long.", "Awful phone, it broke after a day, do not buy it."]
    assert shipped.infer(praise)["label"].tolist() == [1, 1]
    assert shipped.infer(blame)["label"].tolist() == [0, 0]


def test_rows_do_not_depend_on_their_batch(shipped: Supernet, samples: tuple[list[str], list[int]]) -> None:
    """A text scores the same alone and beside longer ones: padding is masked."""
    texts = samples[0][:12]
    together = shipped.infer(texts)["scores"]
    alone = torch.cat([shipped.infer([text])["scores"] for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_hosted_subnets_run(shipped: Supernet) -> None:
    """Any subnet beside the Pareto set is actuated and infers: this family needs no statistics."""
    assert shipped.hosted
    for subnet_id in itertools.islice(shipped.hosted, 20):
        shipped.actuate(subnet_id)
        assert shipped.infer(["fine"])["scores"].shape == (1, 2)


def test_tokens_are_an_input_too(shipped: Supernet) -> None:
    """Token ids give what their text gives; other tensors are refused."""
    ids = shipped.tokens(["not bad at all"])
    torch.testing.assert_close(shipped.infer(ids)["scores"], shipped.infer(["not bad at all"])["scores"])
    with pytest.raises(ValueError, match="token ids are INT64"):
        shipped.infer(ids.float())


def test_images_are_no_texts(shipped_folder: Path) -> None:
    """A supernet of images refuses text by its input."""
    with pytest.raises(ValueError, match="'image' takes UINT8, got text"):
        artifact.load(shipped_folder).infer(["text"])


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_padding_and_truncation(count: int) -> None:
    """Ids are padded with 0 to a multiple of 8 and cut off at the longest legal length, one by one or many at once."""
    tokenise = Tokeniser.load(FOLDER, 16)
    short, long = tokenise(["good"] * count), tokenise(["good " * 100] * count)
    assert short.shape == (count, 8)
    assert long.shape == (count, 16)
    assert (short[:, 3:] == 0).all()  # a token at either end, one between
    assert (short[:, :3] > 0).all()
    assert (long > 0).all()
    assert tokenise([]).shape == (0, 8)


def test_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    """Without its tokenizer, or with half of it, a text model does not load, and the error names the file."""
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is no tokenizer"):
        artifact.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        artifact.load(tmp_path)
    with pytest.raises(TokeniserError, match=r"tokenizer\.json is missing"):
        Tokeniser.load(tmp_path, 8)


def test_padding_is_masked_in_every_subnet() -> None:
    """Whatever stands behind the end of a text, and however long the padding, each subnet gives the same scores."""
    torch.manual_seed(0)
    supernet = bert.build(SMALL)
    ids = torch.randint(1, 30, (3, 12))
    ids[1, 5:] = 0
    ids[2, 1:] = 0
    for control in (supernet.space.smallest, supernet.space.parse("d2-w50-e75"), supernet.space.largest):
        Actuator(supernet).actuate(control.id)
        with torch.inference_mode():
            torch.testing.assert_close(supernet(ids)[1:2], supernet(ids[1:2, :5]))
            torch.testing.assert_close(supernet(ids)[2:], supernet(ids[2:, :1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 15}, "architecture.hidden 15 is no multiple of heads 4"),
        ({"layers": 0}, "architecture.layers must be a positive integer, got 0"),
        ({"heads": "4"}, "architecture.heads must be a positive integer, got '4'"),
        ({"dropout": 1}, "architecture.dropout is unknown"),
    ],
)
def test_wrong_architecture_is_named(change: dict[str, object], message: str) -> None:
    """A value of supernet.json that builds no encoder is told by its key."""
    with pytest.raises(SpecError, match=message):
        bert.Architecture.from_json(SMALL.to_json() | change)


def test_documents_do_not_part() -> None:
    """All snippets of a document land in the same part, near-neutral ones in none, and each part gets its share."""
    snippets = [Snippet(f"tweets/{i // 3}", f"text {i}", (-1.0) ** i * (i % 5)) for i in range(3_000)]
    split = rated_text.split(snippets)
    parts = [{s.document for s in part} for part in (split.train, split.held_out, split.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert all(abs(s.rating) >= 0.5 for part in (split.train, split.held_out, split.test) for s in part)
    assert len(split.train) > 5 * len(split.held_out) > 0
    assert 0.5 < len(split.test) / len(split.held_out) < 2


def test_another_archive_is_refused(tmp_path: Path) -> None:
    """The rated snippets are those that the figures are about: a missing or another archive is refused."""
    path = tmp_path / rated_text.ARCHIVE
    with pytest.raises(DataError, match="is missing"):
        rated_text.read_rated(path)
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("hutto_ICWSM_2014/tweets_GroundTruth.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match="has sha256"):
        rated_text.read_rated(path)


def test_batches_hold_texts_of_like_length() -> None:
    """An epoch's order takes every row once, and rows of one batch differ little in length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 65, (1_000,), generator=generator)
    ids = (torch.arange(64)[None] < lengths[:, None]).long()
    texts = Texts(ids, torch.zeros(1_000, dtype=torch.int64))
    order = texts.order(20, generator)
    assert sorted(order.tolist()) == list(range(1_000))
    spread = [int(lengths[part].max() - lengths[part].min()) for part in torch.split(order, 20)]
    assert sum(spread) / len(spread) < 10
    assert len(set(lengths[order[:20]].tolist() + lengths[order[-20:]].tolist())) > 2
