"""The paper's evaluation, and what goes past it, as one command: `loadgen evaluate`."""
