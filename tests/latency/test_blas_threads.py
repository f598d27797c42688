"""One thread of linear algebra, in a process that has not loaded any yet."""

import json
import subprocess
import sys

CODE = """
import json
from latency.blas_threads import one_blas_thread
with one_blas_thread():
    import numpy, scipy.linalg, threadpoolctl
    found = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
print(json.dumps(found))
"""


def test_libraries_that_are_not_loaded_yet_are_told_too() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found and set(found) == {1}
