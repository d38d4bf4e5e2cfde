#!/usr/bin/env bash
# Installs the programs of others that some tests use: a browser, a proxy, checkers of Prometheus and systemd, shells, Node.
# Called by `make outside` and by CI. Without them those tests are skipped and say so; nothing else needs them.
set -euo pipefail

declare -A package=([chromium]=chromium [nginx]=nginx-light [promtool]=prometheus [node]=nodejs [npm]=npm [systemd-analyze]=systemd [zsh]=zsh [fish]=fish [curl]=curl)
missing=()
for program in "${!package[@]}"; do
    command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("${package[$program]}")
done
[ "${#missing[@]}" -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "outside: not installed: ${missing[*]} (needs root and apt-get); the tests that need them are skipped" >&2
    exit 0
fi
echo "outside: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
