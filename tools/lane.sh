#!/usr/bin/env bash
# Runs one lane (the quick one with lint, types and arrows) and says how long that took. Called by `make test`, `make deep` and `make nightly`.
# Tests that measure no time run in two processes; `serial` ones run alone, after them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lane=$1
shift
export LANE=$lane
# llama.cpp would start a debugger on itself when it aborts.
export GGML_NO_BACKTRACE=1
chosen="not deep and not nightly"
[ "$lane" != deep ] || chosen="(deep or sampled) and not nightly"
[ "$lane" != nightly ] || chosen="(nightly or sampled)"
started=$SECONDS
[ "$lane" != quick ] || make --no-print-directory lint types arrows
.venv/bin/python -m pytest -n 2 --dist loadfile -m "not serial and $chosen" --durations=10 --maxfail=25 "$@" </dev/null
.venv/bin/python -m pytest -m "serial and $chosen" --durations=10 --maxfail=25 "$@" </dev/null || [ $? = 5 ] # none selected
echo "lane $lane: $(((SECONDS - started + 30) / 60)) min ($((SECONDS - started)) s)"
