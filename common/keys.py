"""Every stream, group, key and TTL of the mesh, in one place.

All names of one model share the hash tag ``{model}``, so that on Redis Cluster a model's streams stand in one slot and
one blocking read covers them. The set of models is the only name outside a tag.
"""

MODELS = "superserve:models"  # set: names of the models that some scheduler serves

SCHEDULER_GROUP = "scheduler"  # group on ingress and events; read by the active scheduler only
SCHEDULER_CONSUMER = "active"  # one stable name: whoever becomes active inherits what its predecessor left pending
WORKER_GROUP = "worker"  # group on each worker's stream
WORKER_CONSUMER = "worker"
GATEWAY_GROUP = "gateway"  # group on each gateway's reply stream
GATEWAY_CONSUMER = "gateway"

PAYLOAD_TTL_S = 120  # a payload under its own key outlives any sensible SLO, not a crash for ever
REPLIES_TTL_S = 60  # a reply stream whose gateway is gone disappears by itself
WORKER_STREAM_TTL_S = 60  # a worker's stream: refreshed by each heartbeat; outlasts its loss being noticed by far
STATUS_TTL_MS = 3_000  # a status that nobody refreshes means: no scheduler
LEADER_TTL_MS = 2_000  # how long a dead scheduler blocks its standby
COUNTS_TTL_MS = 3_000  # counts that nobody refreshes are those of a process that is gone


def ingress(model: str) -> str:
    """Stream of packs of queries, gateways to scheduler."""
    return f"superserve:{{{model}}}:ingress"


def events(model: str) -> str:
    """Stream of hello, done and heartbeat, workers to scheduler."""
    return f"superserve:{{{model}}}:events"


def work(model: str, worker: str) -> str:
    """Stream of batches for one worker."""
    return f"superserve:{{{model}}}:work:{worker}"


def workers(model: str) -> str:
    """Set of the names of workers that have a stream."""
    return f"superserve:{{{model}}}:workers"


def replies(model: str, gateway: str) -> str:
    """Stream of answers for one gateway."""
    return f"superserve:{{{model}}}:replies:{gateway}"


def payload(model: str, query_id: int) -> str:
    """Key of one payload above the threshold for travelling inside a pack."""
    return f"superserve:{{{model}}}:payload:{query_id:016x}"


def status(model: str) -> str:
    """Key of the active scheduler's status document."""
    return f"superserve:{{{model}}}:status"


def scheduler_counts(model: str) -> str:
    """Key of what the active scheduler counts."""
    return f"superserve:{{{model}}}:counts"


def gateways(model: str) -> str:
    """Set of the names of gateways that count queries of this model."""
    return f"superserve:{{{model}}}:gateways"


def gateway_counts(model: str, gateway: str) -> str:
    """Key of what one gateway counts."""
    return f"superserve:{{{model}}}:counts:{gateway}"


def leader(model: str) -> str:
    """Key of the lease that makes one scheduler the active one."""
    return f"superserve:{{{model}}}:leader"
