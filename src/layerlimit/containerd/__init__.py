"""The service that containerd and Docker call as a snapshotter."""
