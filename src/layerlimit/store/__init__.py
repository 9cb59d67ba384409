"""Names, kinds, labels and life cycle of layers over a driver; admission, gc, check."""

from layerlimit.store.admission import Capacity, Policy
from layerlimit.store.check import Finding
from layerlimit.store.entry import Gauge, Info, Kind
from layerlimit.store.layer import Layer
from layerlimit.store.rebuild import check_root, rebuild
from layerlimit.store.store import Store

__all__ = [
    "Capacity",
    "Finding",
    "Gauge",
    "Info",
    "Kind",
    "Layer",
    "Policy",
    "Store",
    "check_root",
    "rebuild",
]
