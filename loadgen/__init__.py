"""Load for an Open Inference Protocol server: traces, open-loop replay, reports, plots and simulation."""
