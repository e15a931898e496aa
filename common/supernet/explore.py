"""From a trained supernet to what serves: its Pareto set, a profile of it, and hundreds of subnets beside it.

Source: SuperServe section 5 (registration: architecture search for the Pareto set, then profiling); once-for-all (Cai
et al., 2020) for a predictor of accuracy trained on measured subnets. In five stages:

    screen    subnets from all over the space: accuracy on some held-out rows, latency on this device
    refine    predictors of both; evolution; some of what they think best is measured too, and they are trained anew
    host      SubnetNorm statistics for hundreds of subnets near the predicted front
    measure   the best of them, and those a person would have picked: accuracy on all held-out rows
    profile   their latency at every batch size, as a worker would run them; the Pareto set is taken from that

What was measured is written down as it goes, so that a search that was ended goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.supernet import artifact
from common.supernet.actuate import Actuator, Elastic
from common.supernet.calibrate import calibrate
from common.supernet.data import Rows
from common.supernet.evolve import Array, Fit, Predicted, Predictor, best, evolve
from common.supernet.measure import BATCH_SIZES, accuracy, cost, latencies, profile
from common.supernet.search import Candidate, candidates, pareto, spread
from common.supernet.spec import Control
from common.supernet.supernet import AUTO, PRECISIONS, Subnet, Supernet, fastest

STATE, STATISTICS = "search.json", "search.safetensors"
SCREENED_BY = (1, 16)  # batch sizes of the latencies that predictors learn
SAVE_EVERY_S = 10.0
MAX_FOLDED_BYTES = 2 << 30  # of the plans that are in memory while latencies are screened

Progress = Callable[[str, int, int], None]


class SearchError(RuntimeError):
    """A search cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Data:
    """Rows that calibrate, rows that choose, and rows that choose nothing and are measured once at the end."""

    train: Rows
    held_out: Rows
    test: Rows | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a search measures. Counts of subnets, then of rows, then of runs per latency."""

    screened: int = 32
    refined: int = 12
    hosted: int = 512
    finalists: int = 9
    baselines: int = 4
    subnets: int = 8
    screen_rows: int = 1_000
    calibration_rows: int = 128
    final_calibration_rows: int = 1_000
    screen_runs: int = 7
    runs: int = 25
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A subnet as plots show it. accuracy: percent; seconds: of a batch, geometric mean over batch sizes."""

    id: str
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search ends with.

    subnets: the Pareto set; profile: its latencies, in the JSON form; hosted: subnet id -> predicted accuracy.
    candidates: all that were measured fully; baselines: ids of those that a person would have picked.
    fits: how far the predictors were off, by quantity. seconds: what each stage took, in this run.
    """

    subnets: tuple[Subnet, ...]
    profile: dict[str, Any]
    hosted: dict[str, float]
    screened: tuple[Point, ...]
    predicted: tuple[Point, ...]
    candidates: tuple[Candidate, ...]
    baselines: tuple[str, ...]
    fits: dict[str, Fit]
    precision: str
    seconds: dict[str, float]


@dataclass(slots=True)
class _State:
    """What was measured so far. key: of all that measurements depend on."""

    key: str
    precision: str = ""
    screened: dict[str, tuple[float, list[float]]] = field(default_factory=dict)  # id -> accuracy, seconds per size
    final: dict[str, tuple[float, float | None]] = field(default_factory=dict)  # id -> accuracy, test accuracy


class Search:
    """A search over the supernet in `source`; what it finds is written to `out`, a folder that may be the same.

    precision: what is served with, as in Supernet; accuracy and latency are measured in it, on `device`. A GPU has not
    been verified.
    Raises: ArtifactError; SearchError when `out` holds the state of another search, unless `fresh`.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        data: Data,
        budget: Budget | None = None,
        precision: str = AUTO,
        device: str = "cpu",
        fresh: bool = False,
        progress: Progress = lambda *_: None,
    ) -> None:
        self._source, self._out, self._device, self._progress = source, out, device, progress
        test = None if data.test is None else data.test.to(device)
        self._data = Data(data.train.to(device), data.held_out.to(device), test)
        self._budget = budget or Budget()
        self._parts = artifact.read(source, device)
        self._model, self._space = self._parts.model, self._parts.model.space
        for norm in self._model.norms().values():
            norm.statistics.clear()
        self._asked = precision
        self._state = self._resume(fresh)
        fold = self._budget.screened * self._model.bytes < MAX_FOLDED_BYTES
        self._actuator = Actuator(self._model, plan_bytes=1 << 62 if fold else 0)  # all folded or none: comparable
        text, rows = self._parts.text, max(SCREENED_BY)
        self._example = data.held_out.inputs[:rows] if text is None else text.tokenise(text.example(rows))
        self._example = self._example.to(device)
        self._saved = time.monotonic()
        self._took: dict[str, float] = {}
        self._of_accuracy: Predictor  # the newest, like the next
        self._of_cost: Predictor

    def run(self) -> Found:
        """Search, and write pareto.json, norms.safetensors and profiles/ beside copies of the model's other files."""
        budget, space, rng = self._budget, self._space, random.Random(self._budget.seed)
        self._state.precision = self._state.precision or self._fastest()
        self._model.cast(PRECISIONS[self._state.precision])
        baselines = self._baselines(budget.baselines)
        self._screen("screen", list(dict.fromkeys([*candidates(space, budget.screened, budget.seed), *baselines])))
        hopeful = best(self._evolve(rng, 1.0), 4 * budget.refined)
        self._screen("refine", [p.control for p in rng.sample(hopeful, min(budget.refined, len(hopeful)))])
        looked = self._evolve(rng, -1.0)
        hosted = best(looked, budget.hosted)
        self._calibrate("host", [p.control for p in hosted], budget.calibration_rows)
        finalists = spread(_front(looked), budget.finalists)
        ends = (space.smallest, space.largest)
        controls = list(dict.fromkeys([*ends, *(c.control for c in finalists), *baselines]))
        self._calibrate("calibrate", controls, budget.final_calibration_rows)
        supernet = self._supernet(self._model, controls, self._state.precision)
        measured = self._measure(supernet)
        began = time.monotonic()
        taken = profile(supernet, BATCH_SIZES, budget.runs, lambda share: self._tell("profile", share))
        self._took["profile"] = time.monotonic() - began
        seconds = {entry["id"]: tuple(us / 1e6 for us in entry["median_us"]) for entry in taken["subnets"]}
        final = [Candidate(s.control, s.accuracy, seconds[s.id]) for s in measured]
        hosted = self._expected(hosted, final)
        chosen = [c.control.id for c in spread(pareto(final), budget.subnets)]
        subnets = tuple(next(s for s in measured if s.id == subnet_id) for subnet_id in chosen)
        accuracies = {s.id: s.accuracy for s in subnets}
        taken["subnets"] = [
            entry | {"accuracy": accuracies[entry["id"]]} for entry in taken["subnets"] if entry["id"] in accuracies
        ]
        taken["subnets"].sort(key=lambda entry: entry["accuracy"])
        others = {p.control.id: p.accuracy for p in hosted} | {s.id: s.accuracy for s in measured}
        others = {subnet_id: value for subnet_id, value in others.items() if subnet_id not in accuracies}
        found = Found(
            subnets=subnets,
            profile=taken,
            hosted=others,
            screened=tuple(Point(i, a, _mean(t)) for i, (a, t) in self._state.screened.items()),
            predicted=tuple(Point(p.control.id, p.accuracy, math.exp(p.cost)) for p in hosted),
            candidates=tuple(final),
            baselines=tuple(control.id for control in baselines),
            fits={"accuracy": self._of_accuracy.fit, "latency": self._of_cost.fit},
            precision=self._state.precision,
            seconds=self._took,
        )
        self._publish(found)
        return found

    # -- stages -------------------------------------------------------------------------------------------------------

    def _fastest(self) -> str:
        """The precision that is asked for, or that is the faster one on this device."""
        if self._asked != AUTO:
            return self._asked
        for control in (self._space.smallest, self._space.largest):
            self._calibrate_one(control, self._budget.calibration_rows)
        self._model.eval().requires_grad_(False)
        return fastest(self._model, [self._space.smallest.id, self._space.largest.id], self._example)

    def _screen(self, stage: str, controls: Sequence[Control]) -> None:
        """Accuracy on some held-out rows, and latency, of the subnets that are not known yet."""
        began, budget = time.monotonic(), self._budget
        held_out = self._data.held_out.part(0, budget.screen_rows)
        fresh = [control for control in controls if control.id not in self._state.screened]
        accuracies = {}
        for index, control in enumerate(fresh):
            self._calibrate_one(control, budget.calibration_rows)
            self._actuator.actuate(control.id)
            accuracies[control.id] = accuracy(self._model, held_out)
            self._progress(stage, index + 1, len(fresh))
        measured = latencies(self._time, [(c.id, size) for c in fresh for size in SCREENED_BY], budget.screen_runs)
        for control in fresh:
            seconds = [sorted(measured[control.id, size])[budget.screen_runs // 4] for size in SCREENED_BY]
            self._state.screened[control.id] = accuracies[control.id], seconds
            self._actuator.forget(control.id)
        self._save(force=True)
        self._took[stage] = time.monotonic() - began

    def _evolve(self, rng: random.Random, doubt: float) -> list[Predicted]:
        """All subnets that evolution looked at, with predictions from everything that was screened.

        doubt: standard deviations added to the predicted accuracy: above 0 to learn where little is known, below 0 not
        to be misled by it.
        """
        known = self._state.screened
        controls = [self._space.parse(subnet_id) for subnet_id in known]
        layout = self._model.layout
        of_accuracy = Predictor(layout, controls, [a for a, _ in known.values()])
        of_cost = Predictor(layout, controls, [math.log(_mean(seconds)) for _, seconds in known.values()])
        self._of_accuracy, self._of_cost = of_accuracy, of_cost

        def accuracies(asked: Sequence[Control]) -> Array:
            mean, deviation = of_accuracy(asked)
            return mean + doubt * deviation

        return evolve(self._space, accuracies, lambda asked: of_cost(asked)[0], controls, rng)

    def _expected(self, found: Sequence[Predicted], final: Sequence[Candidate]) -> list[Predicted]:
        """The same subnets with the accuracy and latency expected of them, whatever doubt they were chosen by.

        Predictors learn from some rows, and from bare forward passes. What all rows and the profile make of the
        finalists is added, the same for every subnet.
        """
        asked, controls = [c.control for c in final], [p.control for p in found]
        places = [BATCH_SIZES.index(size) for size in SCREENED_BY]
        percents = self._of_accuracy(asked)[0] - [c.accuracy for c in final]
        logarithms = self._of_cost(asked)[0] - [math.log(_mean([c.seconds[i] for i in places])) for c in final]
        accuracies = np.minimum(self._of_accuracy(controls)[0] - percents.mean(), 100.0)
        costs = self._of_cost(controls)[0] - logarithms.mean()
        return [Predicted(*fields) for fields in zip(controls, accuracies.tolist(), costs.tolist(), strict=True)]

    def _calibrate(self, stage: str, controls: Sequence[Control], rows: int) -> None:
        began = time.monotonic()
        for index, control in enumerate(controls):
            self._calibrate_one(control, rows, anew=stage != "host")
            self._save()
            self._progress(stage, index + 1, len(controls))
        self._took[stage] = time.monotonic() - began

    def _calibrate_one(self, control: Control, rows: int, anew: bool = False) -> None:
        norms = self._model.norms()
        if anew or not any(control.id in norm.statistics for norm in norms.values()):
            batch = min(rows, 125)
            calibrate(self._model, control, (part.inputs for part in self._data.train.part(0, rows).batches(batch)))
            self._actuator.forget(control.id)

    def _supernet(self, model: Elastic, controls: Sequence[Control], precision: str) -> Supernet:
        """The supernet as a worker holds it; accuracies are not known yet."""
        parts, row = self._parts, self._data.held_out.inputs[:1]
        subnets = [Subnet(c, 0.0, None, *cost(model, c, row)) for c in controls]
        return Supernet(model, parts.spec, subnets, self._device, parts.text, precision=precision)

    def _measure(self, supernet: Supernet) -> list[Subnet]:
        """Accuracy of the finalists on all held-out rows, as they are served."""
        began, data, measured = time.monotonic(), self._data, []

        def infer(rows: Tensor) -> Tensor:
            return supernet.infer(rows)["scores"]

        for index, subnet in enumerate(supernet.subnets):
            if subnet.id not in self._state.final:
                supernet.actuate(subnet.id)
                test = None if data.test is None else round(accuracy(infer, data.test), 2)
                self._state.final[subnet.id] = round(accuracy(infer, data.held_out), 2), test
            found = self._state.final[subnet.id]
            measured.append(replace(subnet, accuracy=found[0], test_accuracy=found[1]))
            self._save()
            self._progress("measure", index + 1, len(supernet.subnets))
        self._took["measure"] = time.monotonic() - began
        return measured

    # -- small ones ---------------------------------------------------------------------------------------------------

    def _baselines(self, count: int) -> list[Control]:
        """What a person would pick without a search: subnets that bend everything alike, evenly over the range."""
        steps = [(i + 1) / (count + 1) for i in range(count)]

        def at(share: float, part: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
            return tuple(values[round(share * (len(values) - 1))] for values in part)

        space = self._space
        return [Control(at(s, space.depth), at(s, space.width), at(s, space.expand)) for s in steps]

    def _time(self, subnet_id: str, size: int) -> None:
        self._actuator.actuate(subnet_id)
        with torch.inference_mode():
            self._model(self._example[:size]).cpu()

    def _tell(self, stage: str, share: float) -> None:
        self._progress(stage, round(100 * share), 100)

    # -- files --------------------------------------------------------------------------------------------------------

    def _resume(self, fresh: bool) -> _State:
        budget = {k: v for k, v in asdict(self._budget).items() if k.endswith("rows") or k == "seed"}
        digest = hashlib.sha256((self._source / artifact.WEIGHTS).read_bytes())
        digest.update(repr((self._space.to_json(), budget, len(self._data.train), len(self._data.held_out))).encode())
        state = _State(digest.hexdigest())
        path = self._out / STATE
        if fresh or not path.is_file():
            return state
        try:
            data = json.loads(path.read_text())
            found = _State(
                str(data["key"]),
                str(data["precision"]),
                {str(k): (float(a), [float(s) for s in t]) for k, (a, t) in data["screened"].items()},
                {str(k): (float(a), None if t is None else float(t)) for k, (a, t) in data["final"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SearchError(f"{path} is no state of a search: {error!r}; --fresh begins anew") from error
        if found.key != state.key or self._asked not in (AUTO, found.precision):
            raise SearchError(f"{path} is of another model, data or budget; --fresh begins anew")
        if self._model.norms() and (self._out / STATISTICS).is_file():
            artifact.fill_statistics(self._model, self._out / STATISTICS, self._device)
        return found

    def _save(self, force: bool = False) -> None:
        """Write down what is known, now or when the last time is a while ago."""
        if not force and time.monotonic() - self._saved < SAVE_EVERY_S:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        artifact.write_json(self._out / STATE, asdict(self._state))
        if norms := self._model.norms():
            ids = dict.fromkeys(subnet_id for norm in norms.values() for subnet_id in norm.statistics)
            artifact.write_statistics(self._out, self._model, list(ids), STATISTICS)
        self._saved = time.monotonic()

    def _publish(self, found: Found) -> None:
        self._save(force=True)
        out, source = self._out, self._source
        if out.resolve() != source.resolve():
            for path in source.iterdir():
                if path.is_file() and path.name not in (artifact.PARETO, artifact.NORMS, STATE, STATISTICS):
                    shutil.copyfile(path, out / path.name)
        ids = [*(subnet.id for subnet in found.subnets), *found.hosted] if self._model.norms() else []
        artifact.write_statistics(out, self._model, ids)
        artifact.write_pareto(out, found.subnets, found.hosted, self._notes(found))
        name = profile_file(found.profile)
        (out / PROFILES).mkdir(exist_ok=True)
        artifact.write_json(out / PROFILES / name, found.profile)
        (out / STATISTICS).unlink(missing_ok=True)

    def _notes(self, found: Found) -> dict[str, Any]:
        data, budget = self._data, self._budget
        fit = found.fits["accuracy"]
        notes: dict[str, Any] = {
            "accuracy": f"percent of {len(data.held_out)} rows held out of training, in {found.precision}; they chose",
            "search": f"{len(found.screened)} subnets screened on {min(budget.screen_rows, len(data.held_out))} rows, "
            f"{len(found.candidates)} measured on all; latency on {found.profile['device']}",
            "hosted": f"accuracies predicted, {fit.error:.2f} points off on subnets left out",
        }
        if data.test is not None:
            notes["test_accuracy"] = f"percent of {len(data.test)} other rows, which chose nothing"
        if self._model.norms():
            notes["statistics"] = (
                f"from {budget.final_calibration_rows} training rows for subnets, {budget.calibration_rows} for hosted"
            )
        return notes


PROFILES = "profiles"


def profile_file(taken: Mapping[str, Any]) -> str:
    """File name of a profile: device, threads and precision."""
    words = "".join(c if c.isalnum() else " " for c in taken["device"].lower()).split()
    return "-".join([*words, f"t{taken['threads']}", taken["precision"]]) + ".json"


def _front(looked: Sequence[Predicted]) -> list[Candidate]:
    """The best predicted front, ascending."""
    ascending: list[Candidate] = []
    for p in sorted(looked, key=lambda p: (p.cost, -p.accuracy)):
        if not ascending or p.accuracy > ascending[-1].accuracy:
            ascending.append(Candidate(p.control, p.accuracy, (math.exp(p.cost),)))
    return ascending


def _mean(seconds: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, seconds)) / len(seconds))
