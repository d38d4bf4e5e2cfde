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
#
# A build for the CPU of this very machine dies of SIGILL on another one, and what is built here does move: virtual machines
# do, and so do copies of folders and uv's cache. So it is built for any x86-64 CPU with AVX2 and its companions (all since
# 2013, 2017 from AMD). A build for one CPU is made where CMAKE_ARGS says something else, or the CPU is of another kind; then
# the CPU is among the settings, and another CPU gets another build.
cpu=$(grep -m 1 -E '^(flags|Features)[[:space:]]*:' /proc/cpuinfo 2>/dev/null || uname -m)
llama_settings=(--config-settings-package llama-cpp-python:cmake.define.LLAVA_BUILD=OFF)
built_for="any CPU with AVX2"
for flag in avx2 bmi2 f16c fma; do
    [[ " $cpu " = *" $flag "* ]] || built_for=
done
if [ -n "${CMAKE_ARGS:-}" ] || [ -z "$built_for" ]; then
    built_for="CMAKE_ARGS ${CMAKE_ARGS:-}"
    [[ ${CMAKE_ARGS:-} = *GGML_NATIVE=OFF* ]] || built_for+=" on $cpu"
    # uv's cache of built wheels does not look at CMAKE_ARGS, so they are made part of the settings it looks at.
    llama_settings+=(--config-settings-package "llama-cpp-python:cmake.define.WORKER_ORCD_BUILT_FOR=$(digest <<<"$built_for")")
else
    llama_settings+=(--config-settings-package llama-cpp-python:cmake.define.GGML_NATIVE=OFF)
fi
