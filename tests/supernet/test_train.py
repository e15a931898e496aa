"""Training: it learns, it resumes, and it reads its data carefully."""

import gzip
from pathlib import Path

import pytest
import torch

from common.supernet.data import DataError, augment, read_fashion, split
from common.supernet.train import Recipe, Trainer, fit, learning_curve, read_checkpoint
from tests.supernet.conftest import Build, pictures

RECIPE = Recipe(epochs=2, batch=16, learning_rate=5e-3, warmup=0.1)


def test_a_few_steps_reduce_every_loss(build: Build) -> None:
    """Forty steps on a learnable toy bring down the loss of the largest, the smallest and the random subnets."""
    trainer = Trainer(build(), pictures(64, side=14), Recipe(epochs=10, batch=16, learning_rate=5e-3))
    steps = [trainer.step() for _ in range(40)]
    for name in ("largest", "smallest", "others"):
        losses = [getattr(step, name) for step in steps]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_resumed_run_equals_the_uninterrupted(build: Build, tmp_path: Path) -> None:
    """Three steps, a checkpoint, and three more in another process's trainer give the same bits as six steps."""
    images = pictures(64)
    straight = Trainer(build(), images, RECIPE)
    for _ in range(6):
        straight.step()
    first = Trainer(build(), images, RECIPE)
    for _ in range(3):
        first.step()
    first.save(tmp_path / "run.pt")
    second = Trainer(build(seed=9), images, RECIPE)
    second.load(tmp_path / "run.pt")
    for _ in range(3):
        second.step()
    assert second.steps == straight.steps
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(second.model.get_parameter(name), parameter), name


def test_fit_ends_with_the_recipe(build: Build, tmp_path: Path) -> None:
    """A run by epochs ends after just those, leaves its checkpoint, and a run by seconds ends as well."""
    trainer = Trainer(build(), pictures(64), RECIPE)
    steps: list[int] = []
    fit(trainer, tmp_path / "run.pt", save_every=1e9, report=lambda step: steps.append(step.index))
    assert steps == list(range(1, 9))
    assert read_checkpoint(tmp_path / "run.pt")["steps"] == 8
    assert not list(tmp_path.glob("*.partial"))
    timed = Trainer(build(), pictures(64), Recipe(seconds=0.01, batch=16))
    fit(timed, tmp_path / "run.pt", save_every=1e9, report=lambda _: None)
    assert timed.progress == 1.0


def test_learning_curve_rises_and_falls() -> None:
    """The learning rate starts near 0, peaks after the warm-up and ends at 0."""
    values = [learning_curve(step / 100, 0.1) for step in range(101)]
    assert values[0] < 0.02
    assert max(values) == values[10] == 1.0
    assert values[100] == pytest.approx(0)
    assert sorted(values[10:], reverse=True) == values[10:]


def test_checkpoint_of_another_recipe_is_refused(build: Build, tmp_path: Path) -> None:
    """A checkpoint goes on only under its own recipe; how long to train may change."""
    Trainer(build(), pictures(64), RECIPE).save(tmp_path / "run.pt")
    Trainer(build(), pictures(64), Recipe(seconds=5, batch=16, learning_rate=5e-3, warmup=0.1)).load(
        tmp_path / "run.pt"
    )
    other = Trainer(build(), pictures(64), Recipe(epochs=2, batch=8, learning_rate=5e-3, warmup=0.1))
    with pytest.raises(DataError, match="another batch"):
        other.load(tmp_path / "run.pt")


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """A missing or damaged checkpoint is an error with its path."""
    path = tmp_path / "run.pt"
    with pytest.raises(DataError, match="no checkpoint at"):
        read_checkpoint(path)
    path.write_bytes(b"not torch")
    with pytest.raises(DataError, match=r"run.pt is no readable checkpoint"):
        read_checkpoint(path)


def test_recipe_is_bounded_once(build: Build) -> None:
    """A recipe needs either epochs or seconds, and data for at least one batch."""
    for bound in (None, 1.0):
        with pytest.raises(ValueError, match="either epochs or seconds"):
            Recipe(epochs=bound, seconds=bound)
    with pytest.raises(DataError, match="fewer than one batch of 16"):
        Trainer(build(), pictures(8), RECIPE)


def test_augmentation_moves_mirrors_and_erases() -> None:
    """Augmented images are the originals, moved by at most the shift, perhaps mirrored, perhaps with a hole."""
    images = torch.zeros(400, 12, 12, dtype=torch.uint8)
    images[:, 5, 3] = 255
    out = augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(out, augment(images, torch.Generator().manual_seed(0)))
    places = {(int(r), int(c)) for _, r, c in out.nonzero()}
    assert places <= {(r, c) for r in range(3, 8) for c in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)}
    assert {c for _, c in places} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
    erased = int((out.flatten(1).amax(1) == 0).sum())
    assert 0 < erased < 60
    assert int(images.sum()) == 400 * 255


def test_split_is_fixed_and_disjoint() -> None:
    """The held-out part is the same each time and shares no image with the part that trains."""
    images = pictures(50)
    train, held_out = split(images, 10, seed=7)
    assert (len(train), len(held_out)) == (40, 10)
    assert torch.equal(split(images, 10, seed=7)[1].inputs, held_out.inputs)
    rows = {bytes(image.numpy().tobytes()) for image in train.inputs}
    assert not any(image.numpy().tobytes() in rows for image in held_out.inputs)


def write_idx(path: Path, shape: tuple[int, ...], body: bytes) -> None:
    head = bytes([0, 0, 8, len(shape)]) + b"".join(extent.to_bytes(4, "big") for extent in shape)
    path.write_bytes(gzip.compress(head + body))


def test_idx_files_are_read_and_checked(tmp_path: Path) -> None:
    """The four files give images and labels; a missing one says how to get it, a wrong one what is wrong with it."""
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_fashion(tmp_path)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", (3, 2, 2), bytes(range(12)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (3,), bytes([7, 8, 9]))
    train, test = read_fashion(tmp_path)
    assert train.inputs.tolist() == test.inputs.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert train.labels.tolist() == [7, 8, 9]
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    write_idx(labels, (2,), bytes([7, 8]))
    with pytest.raises(DataError, match="3 train images, but 2 labels"):
        read_fashion(tmp_path)
    write_idx(labels, (3,), bytes([7, 8]))
    with pytest.raises(DataError, match="is no IDX file"):
        read_fashion(tmp_path)
    labels.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_fashion(tmp_path)
