"""The scheduler: the live driver of ``common.sched.core``."""
