"""How layers join: one protocol, one module per kernel mechanism."""

from layerlimit.union.aufs import Aufs
from layerlimit.union.mechanisms import MECHANISMS, make, probe
from layerlimit.union.overlay import Overlay
from layerlimit.union.protocol import Mount, Stack, Union

__all__ = ["MECHANISMS", "Aufs", "Mount", "Overlay", "Stack", "Union", "make", "probe"]
