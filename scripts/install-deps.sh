#!/usr/bin/env bash
# Installs what building needs on Debian or Ubuntu, and only what is missing; with the argument `tests` also what those
# need, with `jepsen` what it can use: without root it does without. Needs root (or sudo) for packages.
set -euo pipefail

wanted=" $* "
wants() { [[ $wanted == *" $1 "* ]]; }

RUST_VERSION=1.95.0
RUST_MINIMUM=1.94

packages=()
# What a run does without, and says so.
extras=()
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
need gcc build-essential
need g++ build-essential
need make make
need pkg-config pkg-config
need curl curl
need ccache ccache # RocksDB's C++ is compiled once for debug and release
python=()
command -v python3 >/dev/null 2>&1 || python+=(python3)
python3 -c 'import venv, ensurepip' 2>/dev/null || python+=(python3-venv)
if wants tests; then packages+=("${python[@]}"); elif wants jepsen; then extras+=("${python[@]}"); fi
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
# bindgen, for RocksDB: libclang and its headers, of whatever version this release has.
# (libclang-cpp is another library.)
if ! ldconfig -p | grep -qE 'libclang(-[0-9.]+)?\.so'; then
  version=$(apt-cache search --names-only '^libclang1-[0-9]+$' 2>/dev/null | sed 's/^libclang1-\([0-9]*\).*/\1/' | sort -n | tail -n 1)
  if [ -z "$version" ]; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    version=$(apt-cache search --names-only '^libclang1-[0-9]+$' | sed 's/^libclang1-\([0-9]*\).*/\1/' | sort -n | tail -n 1)
  fi
  packages+=("libclang1-$version" "libclang-common-$version-dev")
fi
# A private PostgreSQL for each test that wants one.
if wants tests && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then packages+=(postgresql); fi
# Moves the wall clocks of nodes.
if wants jepsen && ! ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then extras+=(libfaketime); fi
# Disks that lose their power: not in every container.
if wants jepsen && [ ! -e /usr/sbin/mkfs.ext4 ] && [ ! -e /sbin/mkfs.ext4 ]; then extras+=(e2fsprogs); fi
# Networks that lose packets: likewise. (The path of users need not have what is root's.)
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }
if wants jepsen; then
  if ! has ip || ! has tc; then extras+=(iproute2); fi
  has nft || extras+=(nftables)
fi
if [ ${#packages[@]} -gt 0 ]; then
  echo "installing: ${packages[*]}"
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
if [ ${#extras[@]} -gt 0 ]; then
  echo "installing: ${extras[*]}"
  sudo=$([ "$(id -u)" = 0 ] || echo "sudo -n")
  $sudo apt-get update -qq >/dev/null 2>&1 || true
  # Each by itself: one that this release does not have must not keep the others away.
  missing=()
  for extra in "${extras[@]}"; do
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$extra" >/dev/null 2>&1 || missing+=("$extra")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "not installed: ${missing[*]} (root can: scripts/install-deps.sh jepsen); the run says what it leaves out"
  fi
fi

export PATH="$HOME/.cargo/bin:$PATH"
have=$(rustc --version 2>/dev/null | sed 's/rustc \([0-9.]*\).*/\1/' || true)
if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$RUST_MINIMUM" "$have" | sort -V | head -n 1)" != "$RUST_MINIMUM" ]; then
  echo "installing Rust $RUST_VERSION (found: ${have:-none})"
  if ! command -v rustup >/dev/null 2>&1; then
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain none --profile minimal
  fi
  rustup toolchain install "$RUST_VERSION" --profile minimal --component rustfmt --component clippy
  rustup default "$RUST_VERSION"
fi
