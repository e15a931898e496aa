"""Load for an Open Inference Protocol server: traces, open-loop replay, reports, plots and simulation."""

import common  # before anything of ours: it decides whether compiled modules are imported

__all__ = ["common"]
