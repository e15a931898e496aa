"""The evaluation's report in Markdown: tables and plots, the paper's figure beside ours wherever it gives one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadgen.evaluation.cases import CNN, TRANSFORMER
from loadgen.evaluation.experiments import INFAAS, OURS, SLACKFIT, Experiment
from loadgen.evaluation.summary import EQUAL_ATTAINMENT

Row = Sequence[str]
DYNAMICS_BEHIND = (
    "time_varying"  # the experiment after which `dynamics.png` stands: it shows that one and the one before
)


def write_report(summary: Mapping[str, Any], experiments: Sequence[Experiment]) -> str:
    """Return the report. summary: as `summary.json` has it, `run` included."""
    lines = [*_head(summary)]
    for experiment in experiments:
        lines += [f"## {experiment.title}", "", experiment.about, ""]
        lines += [f"![{experiment.title}]({experiment.key}.png)", ""]
        lines += [*_SECTION[experiment.key](summary[experiment.key], experiment), ""]
        if experiment.key == DYNAMICS_BEHIND:
            lines += ["Over time, on two bursty and two time-varying traces (paper, figure 13):", ""]
            lines += ["![Dynamics](dynamics.png)", ""]
    if "agreement" in summary:
        lines += [*agreement_section(summary["agreement"])]
    return "\n".join(lines).rstrip() + "\n"


def _head(summary: Mapping[str, Any]) -> Iterator[str]:
    run, cnn, text = summary["run"], summary["maf_cnn"], summary["maf_transformer"]
    yield "# Evaluation"
    yield ""
    yield (
        f"Made by `loadgen evaluate` on {run['date']}, in {run['seconds']:.0f} s on {run['cores']} cores "
        f"({run['machine']}), Python {run['python']}, superserve-mesh {run['version']}"
        f"{', compiled' if run['compiled'] else ''}{'; a quick look, `--quick`' if run['quick'] else ''}."
    )
    yield (
        f"Simulated with the live scheduler's own core. Profiles: `{CNN}` and `{TRANSFORMER}`, neither of them "
        f"measured; the day of requests: {run['day']}. One seed ({run['seed']}) per cell."
    )
    yield ""
    yield "| headline | paper | `foresight` | `slackfit` |"
    yield "|---|---|---|---|"
    bursty = summary["bursty"]
    for label, found in (("MAF, convolutional", cnn), ("MAF, transformer", text), ("bursty, mean of nine", bursty)):
        gains, paper = found["gains"], found["paper"]
        for key, what, pattern in (
            ("accuracy_gain_points", "accuracy gained at equal attainment, points", "{:+.2f}"),
            ("attainment_ratio", "attainment gained at equal accuracy", "{:.2f}x"),
        ):
            ours, slackfit = gains[OURS][key], gains[SLACKFIT][key]
            yield _row([f"{label}: {what}", *(_text(value, pattern) for value in (paper[key], ours, slackfit))])
    cheapest = cnn["policies"][INFAAS]["serving_accuracy"]
    over = (cnn["policies"][name]["serving_accuracy"] - cheapest for name in (OURS, SLACKFIT))
    yield _row(["MAF, convolutional: accuracy over INFaaS, points", "-", *(f"{points:+.2f}" for points in over)])
    ratios = summary["actuation_delay"]["miss_ratios"]
    yield _row(
        [
            "SLO misses at 100 ms of actuation over 0 ms",
            "up to 75x",
            *(ratio(ratios[name]) for name in (OURS, SLACKFIT)),
        ]
    )  # fmt: skip
    yield ""
    yield (
        "*Equal* is determined against Clipper+ of each subnet, the smallest of which is INFaaS. Accuracy gained at "
        "equal attainment: the policy's accuracy less that of the most accurate baseline whose attainment is at least "
        f"the policy's less {EQUAL_ATTAINMENT:g}. Attainment gained at equal accuracy: the policy's attainment over "
        "the best among the baselines that are at least as accurate. A dash: there is no such baseline. Clipper+ takes "
        "the largest batch that the head's slack allows: beyond what it can carry heads are late and batches small, so "
        "that it attains less than its capacity would. The paper does not say how its Clipper+ batches."
    )
    yield (
        "*Late queries.* Under `drop`, which all figures are of unless said otherwise, a query that cannot meet its "
        "deadline any more is answered at once with an error, under every policy; under `serve` it goes with the "
        "cheapest subnet that the policy uses, in a full batch, and counts as a miss."
    )
    yield (
        "*Share of the optimum.* Accuracy summed over the queries that met their SLO, which the paper's ZILP "
        "maximises, over the fluid upper bound of the same trace (docs/bounds.md): no policy can reach 100 %."
    )
    yield ""


def _table(head: Row, rows: Sequence[Row]) -> Iterator[str]:
    yield _row(head)
    yield _row(["---"] * len(head))
    yield from (_row(row) for row in rows)


def _row(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _attainment(value: float | None) -> str:
    """Attainment with as many digits as tell it from 1."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 0.9999 or value == 1.0 else f"{value:.6f}"


def _both(one: Mapping[str, float | None]) -> str:
    return f"{_attainment(one['slo_attainment'])} / {_text(one['serving_accuracy'], '{:.2f}')}"


def _one_world(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    rows = []
    for name, one in found["policies"].items():
        late = found["policies_late_serve"][name]
        gains = found["gains"].get(name, {})
        rows.append(
            [
                f"`{name}`", _attainment(one["slo_attainment"]), _text(one["serving_accuracy"], "{:.2f}"),
                _text(one["bound_share"], "{:.2%}"), _text(one["latency_p99_ms"], "{:.1f}"), _both(late),
                _text(gains.get("accuracy_gain_points"), "{:+.2f}"), _text(gains.get("attainment_ratio"), "{:.2f}x"),
            ]
        )  # fmt: skip
    paper = found["paper"]
    rows.append(
        [
            "SuperServe in the paper", _text(paper.get("slo_attainment"), "{:g}"), "-", "-", "-", "-",
            f"{paper['accuracy_gain_points']:+.2f}", f"{paper['attainment_ratio']:.2f}x",
        ]
    )  # fmt: skip
    head = ["policy", "attainment", "accuracy, %", "share of the optimum", "p99, ms"]
    yield from _table([*head, "late served: attainment / accuracy", "gain, points", "gain, attainment"], rows)


def _many_worlds(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    names = [name for name in found["policies"] if name in found["gains"]]
    head = ["trace", *(f"`{name}`" for name in names), "INFaaS"]
    shown = [*names, "infaas"]
    yield from _table(head, [[cell, *(_both(one[name]) for name in shown)] for cell, one in found["cells"].items()])
    yield ""
    rows = []
    for name in found["policies"]:
        one, gains = found["policies"][name], found["gains"].get(name, {})
        rows.append(
            [
                f"`{name}`", _attainment(one["slo_attainment"]), _attainment(one["slo_attainment_least"]),
                _text(one["serving_accuracy"], "{:.2f}"), _text(one["bound_share"], "{:.2%}"),
                _gain_over_cells(gains, "accuracy_gain_points", "{:+.2f}"),
                _gain_over_cells(gains, "attainment_ratio", "{:.2f}x"),
            ]
        )  # fmt: skip
    paper = found["paper"]
    rows.append(
        [
            "SuperServe in the paper", "-", f"{paper['slo_attainment']:g} or more", "-", "-",
            _text(paper.get("accuracy_gain_points"), "{:+.2f}"), _text(paper.get("attainment_ratio"), "{:.2f}x"),
        ]
    )  # fmt: skip
    head = ["policy", "mean attainment", "least", "accuracy, %", "share of the optimum"]
    yield from _table([*head, "gain, points (most)", "gain, attainment (most)"], rows)


def _gain_over_cells(gains: Mapping[str, float | None], key: str, pattern: str) -> str:
    if gains.get(key) is None:
        return "-"
    return f"{_text(gains[key], pattern)} ({_text(gains[f'{key}_most'], pattern)})"


def _cells(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    names = list(found["policies"])
    yield "Attainment / accuracy:"
    yield ""
    yield from _table(
        ["", *(f"`{name}`" for name in names)],
        [[cell, *(_both(one[name]) for name in names)] for cell, one in found["cells"].items()],
    )
    yield from _shares(found, "mean")
    if "policies_late_serve" in found:
        yield ""
        yield "With late queries served, mean attainment / accuracy: " + ", ".join(
            f"`{name}` {_both(one)}" for name, one in found["policies_late_serve"].items()
        ) + "."  # fmt: skip


def _shares(found: Mapping[str, Any], of: str) -> Iterator[str]:
    """A line with every policy's share of the optimum."""
    yield ""
    yield f"Share of the optimum, {of}: " + ", ".join(
        f"`{name}` {_text(one['bound_share'], '{:.2%}')}" for name, one in found["policies"].items()
    ) + "."  # fmt: skip


def _faults(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    alive = found["alive"]
    counts = list(next(iter(alive.values())))
    rows = [[f"`{name}`", *(_both(phases[n]) for n in counts)] for name, phases in alive.items()]
    yield from _table(["workers alive", *counts], rows)
    yield from _shares(found, "that of workers who all live")


def _actuation(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    yield from _cells(found, experiment)
    yield ""
    yield "Misses at the longest delay over those without: " + ", ".join(
        f"`{name}` {ratio(one)}" for name, one in found["miss_ratios"].items()
    ) + "."  # fmt: skip


def ratio(one: Mapping[str, Any]) -> str:
    """Misses with over misses without; where nothing was missed without, there is no ratio."""
    counts = f"{one['misses_without']:,} to {one['misses_longest']:,}"
    return counts if one["ratio"] is None else f"{one['ratio']:,.0f}x ({counts})"


def _way_back(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    rows = []
    for cell, policies in found["back"].items():
        for name, one in policies.items():
            rows.append(
                [
                    f"`{name}`", f"{cell} ms", _text(one["accuracy_before"], "{:.2f}"),
                    _text(one["accuracy_in_burst"], "{:.2f}"), _attainment(one["slo_attainment_in_burst"]),
                    _text(one["back_after_ms"], "{:.0f}") if one["bent"] else "never left",
                ]
            )  # fmt: skip
    head = ["policy", "a change costs", "accuracy before", "in the burst", "attainment in the burst"]
    resolution = next(iter(next(iter(found["back"].values())).values()))["resolution_ms"]
    yield from _table([*head, f"back after, ms (in steps of {resolution})"], rows)
    yield from _shares(found, "mean; a change of subnet costs the bound nothing")


def _tenants(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    rows = [
        [
            f"`{policy}`", tenant, f"{one['slo_ms']:g}", f"{one['min_accuracy']:g}" if one["min_accuracy"] else "-",
            f"{one['queries']:,}", _attainment(one["slo_attainment"]), _text(one["serving_accuracy"], "{:.2f}"),
            _text(one["least_accuracy"], "{:.2f}"), str(one["floor_violations"]),
        ]
        for policy, tenants in found["tenants"].items()
        for tenant, one in tenants.items()
    ]  # fmt: skip
    head = ["policy", "tenant", "SLO, ms", "floor, %", "queries", "attainment", "accuracy, %"]
    yield from _table([*head, "least accuracy, %", "below the floor"], rows)
    yield from _shares(found, "all tenants together")


def _overloaded(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    """The tenants' figures, and in words what priority and floor did to them."""
    yield from _tenants(found, experiment)
    tenants = found["tenants"]

    def attained(*names: str) -> str:
        return ", ".join(
            f"`{policy}` {' and '.join(_attainment(of[name]['slo_attainment']) for name in names)}"
            for policy, of in tenants.items()
        )

    below = sum(one["floor_violations"] for of in tenants.values() for one in of.values())
    yield ""
    yield (
        f"- **Floors.** {below:,} answers were below their tenant's floor. What a floor costs under overload is "
        "attainment: a query that needs more accuracy needs more time, comes to the head of the queue when its "
        "deadline is the earliest, as all do, and then has too little left for a subnet that it may use. Of those "
        f"who demand 79 % were answered in time: {attained('accurate')}."
    )
    yield (
        "- **Priority** orders queries of equal deadlines and nothing else. So it starves nobody, and protects nobody: "
        f"interactive and behind, alike but for it, attained {attained('interactive', 'behind')}."
    )
    yield (
        "- **A long SLO** helps little while more comes than can be served: background queries wait until they are as "
        f"urgent as the others, and attained {attained('background')}."
    )


def _small(found: Mapping[str, Any], experiment: Experiment) -> Iterator[str]:
    rows = [
        [
            f"`{name}`", f"{one['mean']:.2%}", f"{one['least']:.2%}",
            _text(found["policies"][name]["bound_share"], "{:.2%}"), _both(found["policies"][name]),
        ]
        for name, one in found["optimum_shares"].items()
    ]  # fmt: skip
    head = ["policy", "share of the optimum, mean", "least", "share of the fluid bound, mean"]
    yield from _table([*head, "attainment / accuracy, mean"], rows)
    above = found["fluid_above_optimum"]
    yield ""
    yield (
        f"The fluid bound lies {above['mean']:.2%} above the optimum on average ({above['least']:.2%} to "
        f"{above['most']:.2%}): never below, but for the 0.05 % to which the optima are solved."
    )


def agreement_section(found: Mapping[str, Any]) -> Iterator[str]:
    """The section on live and simulated runs. found: what `agreement.agreement` gives."""
    most, runs = found["most"], found["runs"]
    yield "## Live and simulated"
    yield ""
    yield (
        f"The same traces, profile and policies through a real mesh and through the simulator: {found['workers']} "
        f"emulated workers, {found['duration_s']:g} s a run. All is {found['scale']:g} times slower than in the paper, "
        f"so that one machine carries mesh and load: `{found['profile']}`'s latencies and the SLO "
        f"({found['slo_ms']:g} ms) are stretched by that, rates divided by it. The simulated scheduler has the live "
        "one's options, and the simulator is given what the mesh cost in the live run, moment by moment; `simulated` "
        f"is the mean of {found['simulations']} simulations that draw from that anew. They agree where attainment "
        f"differs by at most {most['attainment_difference']:g}, accuracy by {most['accuracy_difference']:g} points, "
        f"and no subnet's share of the answers by more than {100 * most['share_difference']:g} points."
    )
    yield ""
    yield "![Live and simulated](agreement.png)"
    yield ""
    rows = [
        [
            one["trace"], f"`{one['policy']}`", f"{one['queries']:,}", _both(one["live"]), _both(one["simulated"]),
            f"{one['attainment_difference']:.4f}", f"{one['accuracy_difference']:.2f}",
            f"{100 * one['share_difference']:.1f}", f"{100 * one['simulated_spread']:.1f}",
            "yes" if one["agree"] else "no",
        ]
        for one in runs.values()
    ]  # fmt: skip
    head = ["trace", "policy", "queries", "live: attainment / accuracy", "simulated", "difference in attainment"]
    yield from _table(
        [*head, "in accuracy, points", "in a subnet's share, points", "that among simulations", "agree"], rows
    )
    yield ""
    yield (
        "What the mesh cost, in ms, median / 99th percentile: the way of a batch to a worker, and of its report back; "
        "what a batch took longer than its profile says; the way of a reply to the client, with that of the query to "
        "the gateway; the way of a query from gateway to scheduler; how late the scheduler woke; how late the client "
        "sent."
    )
    yield ""
    keys = ("dispatches", "reports", "overheads", "replies", "ingress", "wakes")
    rows = [
        [
            one["trace"], f"`{one['policy']}`",
            *(f"{one['costs_ms'][key]['p50']:.1f} / {one['costs_ms'][key]['p99']:.1f}" for key in keys),
            _text(one["sender_lag_p99_ms"], "{:.1f}"),
        ]
        for one in runs.values()
    ]  # fmt: skip
    yield from _table(
        ["trace", "policy", "dispatch", "report", "overhead", "reply", "ingress", "wake", "client late, p99"], rows
    )
    yield ""
    batches, rejections, differences = (
        sum(one["replayed"][key] for one in runs.values()) for key in ("batches", "rejections", "differences")
    )
    same = f"**{differences:,} are not**" if differences else "all are"
    yield (
        "The live schedulers' event logs, replayed through a fresh core, command "
        f"{batches:,} batches and {rejections:,} rejections. Checked to be those that were taken: each batch by its id "
        "and worker against the reports of workers, each answer's subnet, worker and rows against the batch commanded "
        f"for its query, and late rejections by their number: {same}."
    )
    yield ""


_SECTION = {
    "maf_cnn": _one_world,
    "maf_transformer": _one_world,
    "bursty": _many_worlds,
    "time_varying": _many_worlds,
    "policies": _cells,
    "faults": _faults,
    "actuation_delay": _actuation,
    "way_back": _way_back,
    "jitter": _cells,
    "mixed": _tenants,
    "overloaded": _overloaded,
    "small": _small,
}
