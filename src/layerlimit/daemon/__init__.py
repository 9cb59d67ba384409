"""The daemon: configuration, log, metrics, and how it runs."""
