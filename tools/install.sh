#!/usr/bin/env bash
# Installs the worker for running: a Python environment of its own in a new folder, with the versions and hashes of
# requirements.lock, and without the tools of development. Called by `make install TO=/path/to/folder`; with EXTRAS=ray
# also what `worker-orcd fleet` needs, from requirements-ray.lock.
#
# Never into a folder that is there: a worker that runs from it starts its engine anew from the same files, and would
# get one of another version.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/common.sh

uv_version=$1
to=${2:-}
[ "${to#/}" != "$to" ] || give_up "a whole path is required, such as TO=/opt/worker-orcd-1, found '$to'"
[ ! -e "$to" ] || give_up "'$to' is there already; install beside it, and switch over afterwards"
require_compiler

# Whoever installs, everybody may run it.
umask 022
tools=$(mktemp -d)
trap 'rm -rf "$tools" "$to"' EXIT
"$python" -m venv "$tools" || give_up "'$python' could not make an environment (on Debian and Ubuntu: apt-get install python3-venv)"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"

echo "install: llama.cpp is built now, unless uv's cache has it: about 5 to 10 minutes on 2 cores"
"$python" -m venv --without-pip "$to"
# As constraints, the lock's versions and hashes are kept, and what nothing of the worker needs is left out.
"$tools/bin/uv" pip install --quiet --python "$to/bin/python" --constraint requirements.lock \
    --constraint requirements-ray.lock --link-mode copy --compile-bytecode "${llama_settings[@]}" \
    ".[worker,model,otel,mcp${EXTRAS:+,$EXTRAS}]"
trap 'rm -rf "$tools"' EXIT
echo "install: $("$to/bin/worker-orcd" --version) is in $to"
