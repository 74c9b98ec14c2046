"""A few thousand requests made from the server's own description: no answer is 5xx.

The long form is ``python -m tests.fuzz_server --requests 50000``.
"""

import pytest
from fuzz_server import fuzz


@pytest.mark.parametrize("seed", [11, 12])
def test_no_request_breaks_the_server(server, seed):
    fuzzer = fuzz(server.netloc, 1500, seed)
    assert not fuzzer.failures, fuzzer.failures[:5]
    assert fuzzer.statuses[200] > 300 and fuzzer.statuses[400] > 300
    assert server.get("repos/info").json
