#!/usr/bin/env bash
# Runs the test files that need an optional program as on a machine without it: PATH is a folder of links to everything
# else. Called by `make without`. Arguments: the programs; each alone with EACH=1, otherwise all of them missing at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run_without() {
    local folder place program name
    folder=$(mktemp -d)
    IFS=: read -ra places <<<"$PATH:/usr/sbin"
    for place in "${places[@]}"; do
        for program in "$place"/*; do
            name=${program##*/}
            [[ " $* " == *" $name "* ]] || [ -e "$folder/$name" ] || ln -s "$program" "$folder/$name"
        done
    done
    echo "without: $*"
    local status=0
    PATH=$folder TESTS_PATH=$folder TESTS_WITHOUT="$*" .venv/bin/python -m pytest -q --needing "$*" -p no:cacheprovider </dev/null || status=$?
    rm -r "$folder"
    return "$status"
}

if [ -n "${EACH:-}" ]; then
    for program in "$@"; do run_without "$program"; done
else
    run_without "$@"
fi
