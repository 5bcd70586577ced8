"""What the tests without a window share."""

import contextlib
import copy

import pytest
from waiting import PATIENCE


@pytest.fixture
def scene():
    """The scene of this process; what a test adds to it goes with the test."""
    pytest.importorskip("slicer", reason="needs slicer-core")
    from IconRegistrationLib.mrml import embedded
    from IconRegistrationLib.mrml.scene import temporary_nodes

    scene = embedded.boot()
    with temporary_nodes(scene):
        yield scene


class _Clusters:
    """Clusters of this computer that outlive a test, by their workers; each is started when it is first wanted."""

    def __init__(self, stack, start):
        self._stack, self._start, self._clients = stack, start, {}

    @contextlib.contextmanager
    def lend(self, workers):
        """Yield a client, as `local_cluster` does, when all its workers are there: a test may have killed one.

        Dask gives up a worker that dies while it starts. Such a cluster is left to the end of the tests, and another is
        started: so does `run_cohort`, which asks for a new cluster then.
        """
        client = self._clients.get(workers)
        if client is None or not _comes_back(client, workers.count):
            client = self._clients[workers] = self._stack.enter_context(self._start(workers))
            client.wait_for_workers(workers.count, timeout=PATIENCE)
        yield client


def _comes_back(client, count: int) -> bool:
    """Wait a little for the workers of a cluster; return whether they are there.

    Where they would have come later nothing is lost but the time in which another cluster starts.
    """
    try:
        client.wait_for_workers(count, timeout=20)
    except TimeoutError:
        return False
    return True


@pytest.fixture(scope="session")
def _clusters():
    import dask

    from IconRegistrationLib.batch.cohort.cluster import local_cluster

    @contextlib.contextmanager
    def start(workers):
        """Leave no trace of the cluster's configuration: others start clusters of their own meanwhile."""
        before = copy.deepcopy(dask.config.config)
        with local_cluster(workers) as client:
            dask.config.config.clear()
            dask.config.update(dask.config.config, before)
            yield client

    with contextlib.ExitStack() as stack:
        yield _Clusters(stack, start)


@pytest.fixture(scope="module")
def one_cluster(_clusters):
    """Lend one cluster to all cohorts: where what is tested is not the cluster itself.

    Its workers have one thread each, however many the machine has: results depend on them in their last bits.
    """
    from IconRegistrationLib.batch.cohort import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "_cores", lambda: 1)
        patch.setattr(cluster, "local_cluster", _clusters.lend)
        yield
