"""`worker-orcd`, and `python -m worker_orcd`."""

import sys


def main() -> None:
    """Run the command line, or print one line if only the client library is installed."""
    try:
        from worker_orcd.cli.main import main as command_line  # noqa: PLC0415  # Only the extra `worker` has what it needs.
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("worker_orcd"):
            raise
        sys.exit(
            f"worker-orcd: only the client library is installed ({missing.name} is missing); "
            "to run a worker: pip install 'worker-orcd[worker,model]'"
        )
    command_line()


if __name__ == "__main__":
    main()
