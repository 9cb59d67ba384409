"""Names, kinds, labels and life cycle of layers over a driver; admission, gc, check."""

from layerlimit.store.admission import Capacity, Policy
from layerlimit.store.entry import Info, Kind
from layerlimit.store.store import Store

__all__ = ["Capacity", "Info", "Kind", "Policy", "Store"]
