"""Why a batch's subnet is not the best there is. Decided at dispatch, by facts that the core has, once per batch.

A batch is degraded if its subnet is less accurate than the best that the model's live workers have. All its queries
share one reason, which is the first of these that holds:

1. `cap`: nothing better was to be had there. The worker has no better subnet and another one has; or the subnet is the
   best that the policy uses of itself (`Policy.best`: `fixed`, `infaas`).
2. `slack`: the most urgent query, the head, had not the slack for a better subnet, not even alone: the quickest of them
   would have ended after its deadline. A head that is late already (`late=serve`) has no slack.
3. `floor`: a better subnet would have met the slack, and this one is the least accurate that the head's `min_accuracy`
   admits, or better than any that the policy uses of itself. The floor held accuracy up; it is not what lowered it.
4. `policy`: a better subnet would have met the head's slack, and the policy chose less: to run a larger batch for those
   behind, to spare them their deadlines, out of more caution than is allowed for here, or for a change's cost.

"Would have met" is by one measure whatever the policy: the profile's median for the head's rows, times the worker's
correction, times the `start_quantile` of what batches lately took over what was predicted. The slack is what the policy
sees: from the predicted start to the deadline, less the reply's margin.
"""

from __future__ import annotations

from common.sched.estimators import Residuals
from common.sched.types import Degraded, Query
from common.sched.worker import Worker


def why_degraded(
    worker: Worker,
    head: Query,
    subnet: str,
    best_accuracy: float,
    slack_us: int,
    residuals: Residuals,
    quantile: float,
) -> Degraded:
    """Return why the head's batch runs `subnet` on this worker and nothing better; "" if that is the best.

    best_accuracy: in percent, of the best subnet of any live worker. quantile: of the residuals, the margin allowed.
    """
    profile, index = worker.profile, worker.profile.index(subnet)
    subnets = profile.subnets
    accuracy = subnets[index].accuracy
    if accuracy >= best_accuracy:
        return ""
    better = index + 1
    while better < len(subnets) and subnets[better].accuracy == accuracy:
        better += 1
    if better == len(subnets):
        return "cap"
    if better > worker.best:
        return "cap" if head.min_accuracy <= subnets[worker.best].accuracy else "floor"
    if profile.floor_us(better, head.rows) * worker.correction * residuals.quantile(quantile, prior=1.0) > slack_us:
        return "slack"
    if head.min_accuracy > 0.0 and worker.cheapest < index == worker.eligible(head.min_accuracy):
        return "floor"
    return "policy"
