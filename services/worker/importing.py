"""`superserve import`: a published supernet checkpoint to a model folder that a search and a worker can read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from common import terminal
from common.errors import ConfigError
from services.worker.datasets import FILES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    import torch

    from common.supernet.data import Rows

FAMILIES = ("ofa-resnet50",)
IMAGE_TYPES = (".jpeg", ".jpg", ".png", ".webp")
SEED = 0
ABOUT = "From a published supernet checkpoint to a model folder that a search and a worker can read."
EPILOG = """\
examples:
  superserve import ofa-resnet50 ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0 --images imagenet/val
  superserve search --model out/models/ofa-resnet50 --data out/models/ofa-resnet50/data

--images: a folder with one folder of images per class, in the order of the checkpoint's classes when sorted by name.
Some of them calibrate (--calibration), others are held out to measure accuracy (--held-out); both are written to
OUT/data, scaled and cut as the network takes them. Without --images only the whole network can serve, with the
statistics that the checkpoint has, and --accuracy tells how good it is.

exit codes: 0 done; 1 it failed while running; 2 wrong usage, or something is missing
"""


def run(flags: list[str]) -> int:
    """Import as the flags say. ConfigError names what is wrong with checkpoint or images."""
    args = parser().parse_args(flags)
    if (args.images is None) == (args.accuracy is None):
        raise ConfigError("one of --images and --accuracy is needed: what is the whole network's accuracy?")
    if args.accuracy is not None and not 0 <= args.accuracy <= 100:
        raise ConfigError(f"--accuracy={args.accuracy}: expected percent, 0 to 100")
    out = args.out or Path("out/models") / args.family
    try:
        import torch

        from common.supernet import artifact, measure, ofa
        from common.supernet.actuate import Actuator
        from common.supernet.data import DataError
        from common.supernet.supernet import Subnet
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error}; pip install 'superserve-mesh[worker]'") from error
    torch.set_num_threads(1)
    supernet = ofa.build(ofa.Architecture(args.classes, args.side))
    try:
        ofa.load(supernet, args.checkpoint)
    except DataError as error:
        raise ConfigError(str(error)) from error
    supernet.channels_last()
    labels: Sequence[str] = ()
    percent, how = args.accuracy, "as told to `superserve import`"
    with terminal.stages() as progress:
        if args.images is not None:
            names, train, held_out = read_images(args.images, args.calibration, args.held_out, args.side, progress)
            labels = names
            Actuator(supernet).actuate(supernet.space.largest.id)
            parts = list(held_out.batches(50))
            right = 0.0
            for index, part in enumerate(parts):
                right += measure.accuracy(supernet, part, 50) * len(part)
                progress("measure", index + 1, len(parts))
            percent, how = right / len(held_out), f"percent of {len(held_out)} images of {args.images.name}"
    if args.labels is not None:
        labels = _labels(args.labels)
    if labels and len(labels) != args.classes:
        raise ConfigError(f"{len(labels)} class names for --classes {args.classes}: name them with --labels FILE")
    row = torch.zeros((1, args.side, args.side, 3), dtype=torch.uint8)
    largest = supernet.space.largest
    subnets = [Subnet(largest, round(percent, 2), None, *measure.cost(supernet, largest, row))]
    notes = artifact.Notes(
        "none by the client: rows are red, green and blue values 0..255; the model normalises them",
        {"checkpoint": args.checkpoint.name, "source": "once-for-all (Cai et al., 2020)"},
        {"accuracy": how, "statistics": "the checkpoint's own"},
    )
    artifact.save(out, supernet, ofa.model_spec(args.family, args.classes, args.side, labels), subnets, notes)
    if args.images is not None:
        (out / "data").mkdir(exist_ok=True)
        for name, rows in zip(FILES, (train, held_out), strict=False):
            artifact.write_tensors(out / "data" / name, {"inputs": rows.inputs, "labels": rows.labels})
    print(f"{largest.id}: {percent:.2f} %, {subnets[0].params / 1e6:.1f} M weights; written to {out}")  # noqa: T201
    if args.images is not None:
        print(f"next: superserve search --model {out} --data {out / 'data'}")  # noqa: T201
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of `superserve import`."""
    made = terminal.parser("import", ABOUT)
    made.epilog = EPILOG
    made.add_argument("family", choices=FAMILIES, help="what the checkpoint is of")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file as it was published")
    made.add_argument("--images", type=Path, metavar="DIR", help="folder with one folder of images per class")
    made.add_argument(
        "--calibration", type=terminal.positive, default=512, metavar="N", help="images to calibrate with (%(default)s)"
    )
    made.add_argument(
        "--held-out",
        type=terminal.positive,
        default=2_000,
        metavar="N",
        help="images to measure accuracy with (%(default)s)",
    )
    made.add_argument("--accuracy", type=float, metavar="PERCENT", help="of the whole network; instead of --images")
    made.add_argument(
        "--classes", type=terminal.positive, default=1_000, metavar="N", help="classes of the checkpoint (%(default)s)"
    )
    made.add_argument(
        "--side", type=terminal.positive, default=224, metavar="N", help="pixels of an image's side (%(default)s)"
    )
    made.add_argument("--labels", type=Path, metavar="FILE", help="one class name per line; else the folders' names")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder to write to; by default out/models/FAMILY")
    return made


def read_images(
    folder: Path, calibration: int, held_out: int, side: int, progress: Callable[[str, int, int], None]
) -> tuple[list[str], Rows, Rows]:
    """Class names and two parts of the images below a folder, which share none; as [N, side, side, 3] uint8.

    An image is scaled so that its shorter side is 8/7 of `side`, and its middle cut out: 256 and 224 pixels for
    ImageNet. ConfigError names a folder without images, or an image that cannot be read.
    """
    import torch

    from common.supernet.data import Rows

    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_TYPES
    ]
    if len(found) < 2:
        types = ", ".join(IMAGE_TYPES)
        raise ConfigError(f"--images={str(folder)!r}: {len(found)} images ({types}) in {len(classes)} class folders")
    random.Random(SEED).shuffle(found)
    calibration = min(calibration, len(found) // 2)
    found = found[: calibration + held_out]
    pixels = torch.empty((len(found), side, side, 3), dtype=torch.uint8)
    for index, (path, _) in enumerate(found):
        pixels[index] = _pixels(path, side)
        progress("read", index + 1, len(found))
    rows = Rows(pixels, torch.tensor([label for _, label in found]))
    return classes, rows.part(0, calibration), rows.part(calibration)


def _pixels(path: Path, side: int) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path}: {error}") from error
    scale = side * 8 / 7 / min(rgb.size)
    rgb = rgb.resize(
        (max(side, round(rgb.width * scale)), max(side, round(rgb.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return torch.from_numpy(np.array(rgb.crop((left, top, left + side, top + side))))


def _labels(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"--labels={str(path)!r}: {error}") from error
