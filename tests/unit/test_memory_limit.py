"""How much memory loading a model file may take."""

import json
import subprocess
import sys

PROGRAM = """
import json
from worker_orcd.engine import memory_limit

def fits(mib):
    try:
        return bool(bytearray(mib << 20))
    except MemoryError:
        return False

memory_limit.SPARE_BYTES = 64 << 20
with memory_limit.loading_within(32 << 20):
    within = fits(80), fits(300)
print(json.dumps([*within, fits(300)]))
"""


def test_loading_is_given_what_a_file_of_its_size_can_need() -> None:
    """Twice the file's size and a reserve; more memory is refused while the file loads, and available
    afterwards."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, timeout=60, check=True)
    assert json.loads(done.stdout) == [True, False, True]
