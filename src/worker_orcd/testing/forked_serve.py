"""`worker_orcd.testing.serve` in a forked process, which forks its engine in turn."""

import sys

from worker_orcd.testing.forked_engine import fork_engine
from worker_orcd.testing.serve import main

if __name__ == "__main__":
    sys.exit(main(fork_engine))
