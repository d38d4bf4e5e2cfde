"""llama-server, built from the very sources that llama-cpp-python's release is built from.

The release's archive comes from the package index that pip is configured for, checked against the hash in
requirements.lock. cmake and ninja come from the same index as packages. The program is built once for each version and
set of flags, and kept in the user's cache (`$XDG_CACHE_HOME/worker-orcd` or `~/.cache/worker-orcd`).
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "llama-cpp-python"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
)
"""No page, no TLS, no downloads: nothing of these is measured, and the build needs no network for them."""
ANY_CPU = {"avx2", "bmi2", "f16c", "fma"}
"""What tools/common.sh requires of a CPU for a build that runs on any such CPU."""


def requirement(lock: str) -> str:
    """The lines of a lock file that pin the package, hashes included.

    Raises:
        ValueError: the lock does not name it.
    """
    found = re.search(rf"^{PACKAGE}==.*(?:\\\n +--hash=.*)+", lock, re.MULTILINE)
    if found is None:
        raise ValueError(f"requirements.lock does not pin {PACKAGE}")
    return found[0]


def compiler_flags(cmake_args: str, cpu: set[str]) -> list[str]:
    """What tools/common.sh gives llama.cpp's own build: `CMAKE_ARGS`, or any CPU with AVX2 where this is one."""
    if cmake_args or not cpu >= ANY_CPU:
        return shlex.split(cmake_args)
    return ["-DGGML_NATIVE=OFF"]


def cpu_flags() -> set[str]:
    """What this CPU can do, in Linux's words; empty where Linux does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def cache() -> Path:
    """The user's cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worker-orcd"


def llama_server() -> Path:
    """The built program; builds it if this version is not there with these flags.

    Raises:
        subprocess.CalledProcessError: the download or the build failed; its output says why.
    """
    pinned = requirement((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    cpu = cpu_flags()
    native = compiler_flags(os.environ.get("CMAKE_ARGS", ""), cpu)
    flags = [*FLAGS, *native]
    of_this_cpu = "" if "-DGGML_NATIVE=OFF" in native else " ".join(sorted(cpu))
    key = hashlib.sha256("\n".join([pinned, *flags, of_this_cpu]).encode()).hexdigest()[:16]
    version = pinned.partition("==")[2].split()[0]
    folder = cache() / f"llama-server-{version}-{key}"
    program = folder / "llama-server"
    if not program.exists():
        print(f"building llama-server of {PACKAGE} {version} (once, 5 to 10 minutes on 2 cores)", flush=True)
        _build(pinned, flags, folder)
    return program


def _build(pinned: str, flags: list[str], folder: Path) -> None:
    """Build it beside its place, and move the program there in one step."""
    shutil.rmtree(folder, ignore_errors=True)
    work = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        source = _sources(pinned, work)
        build = work / "build"
        _cmake("-S", str(source), "-B", str(build), "-G", "Ninja", *flags)
        _cmake("--build", str(build), "--target", "llama-server")
        folder.mkdir(parents=True)
        (build / "bin" / "llama-server").replace(folder / "llama-server")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sources(pinned: str, work: Path) -> Path:
    """Fetch the release's archive as pip is configured to, and unpack llama.cpp. pip also asks it for its metadata."""
    wanted = work / "requirements.txt"
    wanted.write_text(pinned, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    asked = [
        "--no-deps",
        "--no-binary",
        PACKAGE,
        "--require-hashes",
        "--dest",
        str(work),
        "--requirement",
        str(wanted),
    ]
    subprocess.run([*pip, *asked], check=True)
    [archive] = work.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    [source] = work.glob("*/vendor/llama.cpp")
    return source


def _cmake(*arguments: str) -> None:
    """Run cmake with ninja beside it, both from their packages."""
    uv = Path(sys.executable).with_name("uv")
    tools = ["run", "--quiet", "--no-project", "--isolated", "--with", "cmake>=3.28", "--with", "ninja>=1.11"]
    subprocess.run([str(uv), *tools, "cmake", *arguments], check=True, cwd=cache())
