"""The worker: one supernet in memory, one batch at a time, each through the subnet that its batch names."""
