"""Messages of containerd's interfaces; made from protos/ by scripts/protos."""
