# Shared by deploy/up, e2e/run and .ci/run; sourced with the checkout as the working folder.

# What the cluster runs with, and what building it needs (Debian's names).
RUNTIME_PACKAGES=(containerd runc iproute2 ca-certificates)
BUILD_PACKAGES=(gcc g++ make pkg-config protobuf-compiler libprotobuf-dev libclang-dev)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "this must run as root (network namespaces, containers): sudo $0 $*"
  # Under sudo the caller's Rust toolchain is usually not on the path.
  local home=${SUDO_USER:+$(getent passwd "$SUDO_USER" | cut -d: -f6)}
  export PATH="$PATH:$HOME/.cargo/bin${home:+:$home/.cargo/bin}"
  if [ -n "${home:-}" ]; then
    export CARGO_HOME="${CARGO_HOME:-$home/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
  fi
}

# Installs those of the named packages that are missing.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "missing packages: ${missing[*]}; install them by your system's means"
  say "installing ${missing[*]}"
  apt-get update -qq
  # Packages must not start services of their own: the cluster runs its own containerd.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# One target folder outside the checkout, so that a clean checkout builds only what changed.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/balsa/target}

# What is run and tested is the release build: it takes two thirds of the debug build's CPU for an API request.
BUILT=$CARGO_TARGET_DIR/release

build_balsa() {
  command -v cargo >/dev/null || die "no Rust toolchain found; install one from https://rustup.rs and run this again"
  say "building balsa (the first time takes half an hour on two cores)"
  # The whole workspace, so that all programs share what is compiled.
  cargo build --locked --release --workspace --bins
}

BALSA=/usr/local/bin/balsa

# Puts the built binary in place by rename, so that a running one is not disturbed.
install_balsa() {
  cmp -s "$BUILT/balsa" "$BALSA" && return 0
  install -m 755 "$BUILT/balsa" "$BALSA.new"
  mv -f "$BALSA.new" "$BALSA"
}
