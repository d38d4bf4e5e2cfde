#!/usr/bin/env bash
# Makes .venv what requirements.lock says, with worker-orcd installed editable in it. Called by `make setup`.
# Nothing to do takes well under a second; the first time llama.cpp is compiled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/common.sh

uv_version=$1
stamp=.venv/.worker-orcd-stamp

# What .venv was made from and for, one fact a line.
wanted=$(
    echo "at $PWD"
    echo "with $("$python" -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')"
    echo "uv $uv_version"
    echo "llama.cpp for $built_for"
    echo "files $(cat requirements.lock pyproject.toml tools/setup.sh tools/common.sh | digest)"
)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

# A .venv that was moved, or made with another Python, has scripts and libraries that point elsewhere.
if [ -d .venv ] && { [ ! -x .venv/bin/python ] || { [ -f "$stamp" ] && [ "$(head -n 2 "$stamp")" != "$(head -n 2 <<<"$wanted")" ]; }; }; then
    echo "setup: .venv was made elsewhere or with another Python; making it anew"
    rm -rf .venv
fi
previously_for=$([ ! -f "$stamp" ] || sed -n 's/^llama.cpp for //p' "$stamp")
rm -f "$stamp"
if [ ! -x .venv/bin/pip ]; then
    "$python" -m venv .venv || give_up "'$python' could not make .venv (on Debian and Ubuntu: apt-get install python3-venv)"
fi
if [ "$(.venv/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$uv_version" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
fi

if [ "$previously_for" != "$built_for" ]; then
    .venv/bin/uv pip uninstall --quiet --python .venv/bin/python llama-cpp-python 2>/dev/null || true
fi

locked=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' requirements.lock)
installed=$(.venv/bin/python -c 'from importlib import metadata; print(metadata.version("llama-cpp-python"))' 2>/dev/null || true)
builder=
if [ "$installed" != "$locked" ]; then
    require_compiler
    echo "setup: building llama.cpp (llama-cpp-python $locked). Without a built copy in uv's cache this takes"
    echo "setup: about 5 to 10 minutes on 2 cores, once."
    started=$SECONDS
    (while sleep 30; do echo "setup: still building, $((SECONDS - started)) s so far"; done) &
    builder=$!
    trap 'kill "$builder" 2>/dev/null || true' EXIT
fi
.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes --compile-bytecode \
    "${llama_settings[@]}" requirements.lock
rm -f .outside/ray.stamp # Ray is not in that file (tools/outside.sh).
if [ -n "$builder" ]; then
    echo "setup: llama.cpp is built and everything installed, after $((SECONDS - started)) s"
fi

# The build backend is in the lock: nothing is fetched.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --no-index --editable .
printf '%s\n' "$wanted" >"$stamp"
echo "setup: .venv is ready"
