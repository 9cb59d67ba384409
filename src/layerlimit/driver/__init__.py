"""One root of layers: the graph-driver interface over any union and limiter."""

from layerlimit.driver.adoption import Adoption, adopt
from layerlimit.driver.driver import Driver, State

__all__ = ["Adoption", "Driver", "State", "adopt"]
