#!/usr/bin/env bash
# Runs one lane (the quick one with lint, types and arrows) and says how long that took. Called by `make test`, `make deep` and `make nightly`.
# Tests that measure no time run in three processes, as they wait more than they compute; beside them run the checks of
# types and arrows. Real models have one thread each there: threads of several models would wait for each other most of
# the time. `serial` tests run alone, after all that, with all threads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lane=$1
shift
export LANE=$lane
# llama.cpp would start a debugger on itself when it aborts.
export GGML_NO_BACKTRACE=1
chosen="not deep and not nightly"
[ "$lane" != deep ] || chosen="deep and not nightly"
[ "$lane" != nightly ] || chosen="(nightly or sampled)"
started=$SECONDS

if [ "$lane" = quick ]; then
    make --no-print-directory lint
    said=$(mktemp)
    make --no-print-directory types arrows >"$said" 2>&1 &
    checking=$!
fi
failed=0
GROUP=parallel WORKER_ORCD_THREADS=1 .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not serial and $chosen" --durations=10 --maxfail=25 "$@" </dev/null || failed=$?
if [ "$lane" = quick ]; then
    wait "$checking" || failed=$?
    cat "$said"
    rm "$said"
fi
[ "$failed" = 0 ] || exit "$failed"
GROUP=serial .venv/bin/python -m pytest -m "serial and $chosen" --durations=10 --maxfail=25 "$@" </dev/null || [ $? = 5 ] # none selected
echo "lane $lane: $(((SECONDS - started + 30) / 60)) min ($((SECONDS - started)) s)"
