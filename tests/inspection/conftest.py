import pytest

from dsmemvp.distributed.ranks import leave_ranks
from dsmemvp.inspection.look import alone


@pytest.fixture
def one_rank():
    """This process by itself, as in a notebook. It leaves afterwards, since other tests join in the same process."""
    yield alone()
    leave_ranks()
