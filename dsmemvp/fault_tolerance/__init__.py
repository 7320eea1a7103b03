"""Heartbeats, failure detection, the lease on a run's folder, the limit of restarts."""
