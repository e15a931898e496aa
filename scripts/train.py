"""Train a supernet that ships with SuperServe from data on this machine, choose its Pareto set, write the artifact.

    apt-get install dataset-fashion-mnist
    scripts/train --model fashion-resnet --hours 1

One thread. The work folder keeps a checkpoint, from which `--resume` goes on; docs/model.md has the expected figures.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from common.supernet.actuate import Elastic
from common.supernet.data import DataError, Images, read_fashion, split
from common.supernet.fashion import HELD_OUT, NAME, SPLIT_SEED, choose, fashion_resnet, publish
from common.supernet.train import Recipe, Step, Trainer, fit

HERE = Path(__file__).resolve().parent.parent
TRIED = 48  # subnets that the search looks at
SAVE_EVERY = 60.0  # seconds


def main() -> None:
    """Train, choose, publish."""
    args = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # initial weights
    train, test = read_fashion(args.data)
    train, held_out = split(train, HELD_OUT, SPLIT_SEED)
    recipe = Recipe(epochs=args.epochs, seconds=args.hours and args.hours * 3600)
    trainer = _train(fashion_resnet(), train, recipe, args.work / f"{NAME}.pt", resume=args.resume)
    print("searching the Pareto set")
    chosen = choose(trainer.model, train, held_out, TRIED, report=tqdm.write)
    for subnet in publish(args.out, trainer.model, chosen, test, _how(trainer), TRIED):
        figures = f"{subnet.accuracy:.2f} % held out, {subnet.test_accuracy:.2f} % test, {subnet.macs / 1e6:.1f} MMAC"
        print(f"{subnet.id:32} {figures}")
    print(f"written to {args.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=[NAME], default=NAME)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="the IDX files")
    parser.add_argument("--out", type=Path, default=HERE / "services/worker/models" / NAME, help="artifact folder")
    parser.add_argument("--work", type=Path, default=HERE / "out/train", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--epochs", type=float, help="train for that many epochs")
    bound.add_argument("--hours", type=float, help="train for that long, before some 10 minutes of search")
    return parser.parse_args()


def _train(model: Elastic, train: Images, recipe: Recipe, checkpoint: Path, *, resume: bool) -> Trainer:
    trainer = Trainer(model, train, recipe)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        trainer.load(checkpoint)
    layout = "{percentage:5.1f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=1.0, initial=trainer.progress, bar_format=layout, mininterval=interval) as bar:

        def report(step: Step) -> None:
            losses = f"{step.largest:.3f} largest {step.smallest:.3f} smallest {step.others:.3f} others"
            bar.set_postfix_str(f"epoch {trainer.epochs:.2f}, losses {losses}", refresh=False)
            bar.update(trainer.progress - bar.n)

        fit(trainer, checkpoint, SAVE_EVERY, report)
    return trainer


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
