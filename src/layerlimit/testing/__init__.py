"""What every driver must do, as tests to run on your own: pytest classes that take a factory.

    from layerlimit.testing import Drivers, Later, Seed

    @pytest.fixture
    def factory() -> Factory:
        return Drivers(lambda root: layerlimit.Driver(root), limit=layerlimit.Limit(32 << 20))

    @pytest.fixture
    def root(tmp_path: Path) -> Path:
        return tmp_path / "root"

    class TestSeed(Seed): ...

The module that subclasses gives the fixtures ``factory`` and ``root``; the latter names a directory that
need not exist. Needs pytest and root's privileges. ``pytest.register_assert_rewrite("layerlimit.testing")``
before the import shows values in failures.
"""

from layerlimit.testing.factory import Behaviour, Drivers, Factory
from layerlimit.testing.graph import Graph
from layerlimit.testing.later import Later
from layerlimit.testing.seed import Seed

__all__ = ["Behaviour", "Drivers", "Factory", "Graph", "Later", "Seed"]
