# What setup.sh and install.sh have in common. Sourced by them, in the repository's folder.
# What they take from outside: PYTHON, CXX, CMAKE_ARGS (for CUDA, Metal, Vulkan …), and the indexes of pip and uv.
python=${PYTHON:-python3}

# These would send an installer somewhere else.
unset PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_HASHES UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX

# Two set-ups at once wait for each other's build of llama.cpp, which takes longer than uv's usual five minutes.
export UV_LOCK_TIMEOUT=${UV_LOCK_TIMEOUT:-1800}

give_up() {
    echo "$(basename "$0" .sh): $1" >&2
    exit 1
}

digest() {
    "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

command -v "$python" >/dev/null || give_up "'$python' not found; Python 3.11 or newer is required (or say PYTHON=/path/to/python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    give_up "Python 3.11 or newer is required, '$python' is $("$python" -V 2>&1) (or say PYTHON=/path/to/python3)"

require_compiler() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        give_up "a C++ compiler is required to build llama.cpp (on Debian and Ubuntu: apt-get install build-essential)"
}

# llama-cpp-python has no wheels: its llama.cpp is compiled here. LLAVA_BUILD=OFF saves a third of that.
# uv's cache of built wheels does not look at CMAKE_ARGS, so they are made part of the settings it looks at.
llama_settings=(--config-settings-package llama-cpp-python:cmake.define.LLAVA_BUILD=OFF)
if [ -n "${CMAKE_ARGS:-}" ]; then
    llama_settings+=(--config-settings-package "llama-cpp-python:cmake.define.WORKER_ORCD_CMAKE_ARGS=$(digest <<<"$CMAKE_ARGS")")
fi
