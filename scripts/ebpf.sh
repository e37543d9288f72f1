#!/bin/sh
# Builds the kernel programs, and proves that the committed object is what the source gives.
#
#   scripts/ebpf.sh setup     install what building needs (Debian 12: rustc-web with library source, LLVM, bpf-linker)
#   scripts/ebpf.sh build     build, and write the objects and ebpf.lock to shipper/ebpf
#   scripts/ebpf.sh verify    build elsewhere; compare byte by byte if the versions are those of the lock, else warn
#   scripts/ebpf.sh objects D build and write the objects to the folder D
#
# There are two: weir-shipper.bpf.o, and weir-shipper-plain.bpf.o for kernels before 5.12, which lack most atomic
# instructions.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
committed=$root/shipper/ebpf
lock=$committed/ebpf.lock
linker_version=0.13.0
export PATH="${BPF_LINKER_ROOT:-${CARGO_HOME:-$HOME/.cargo}}/bin:$PATH"
# The compiler must have its own library source in its sysroot: Debian's rustc-web does, rustup's stable does not.
rustc=${WEIR_EBPF_RUSTC:-/usr/bin/rustc}

llvm_major() { "$rustc" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }

# as_root COMMAND...: by sudo where we are not root
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt PACKAGE...: installs what is missing
apt() {
    dpkg -s "$@" >/dev/null 2>&1 && return
    # A fresh image has no package lists at all.
    as_root apt-get -q update </dev/null >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" </dev/null
}

setup() {
    apt rustc-web rust-web-src
    major=$(llvm_major)
    apt "llvm-$major-dev"
    if ! bpf-linker --version 2>/dev/null | grep -q " $linker_version\$"; then
        LLVM_PREFIX=/usr/lib/llvm-$major cargo install bpf-linker --version "$linker_version" --locked \
            --no-default-features --features "llvm-$major" ${BPF_LINKER_ROOT:+--root "$BPF_LINKER_ROOT"}
    fi
}

# need COMMAND WHAT: fails with what to do
need() {
    command -v "$1" >/dev/null 2>&1 || { echo "$1 is missing ($2): run scripts/ebpf.sh setup" >&2; exit 1; }
}

# compile SOURCE_ROOT TARGET_DIR OUT_DIR: both objects, stripped, the same bytes whatever the paths
compile() {
    need "$rustc" "a rustc with library source"
    need bpf-linker "links BPF objects"
    objcopy=/usr/lib/llvm-$(llvm_major)/bin/llvm-objcopy
    need "$objcopy" "strips debug sections"
    src=$(cd "$1" && pwd -P)
    home=${CARGO_HOME:-$HOME/.cargo}
    sep=$(printf '\037')
    flags="--cfg=bpf_target_arch=\"x86_64\"${sep}-Ctarget-cpu=v3${sep}-Cdebuginfo=2${sep}-Clink-arg=--btf"
    flags="$flags${sep}--remap-path-prefix=$src=/weir${sep}--remap-path-prefix=$home=/cargo"
    # What an outer cargo sets for its own crates must not reach this build.
    for name in $(env | sed -n 's/^\(CARGO_[A-Z0-9_]*\)=.*/\1/p'); do
        [ "$name" = CARGO_HOME ] || unset "$name"
    done
    unset RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER RUSTUP_TOOLCHAIN RUSTDOC TARGET HOST 2>/dev/null || true
    for variant in '' plain; do
        (cd "$src/shipper-ebpf" && RUSTC=$rustc RUSTC_BOOTSTRAP=1 CARGO_ENCODED_RUSTFLAGS=$flags \
            cargo build --quiet --release --locked -Zbuild-std=core --target bpfel-unknown-none \
            --bin weir-shipper --features "$variant" --target-dir "$2")
        "$objcopy" --strip-debug "$2/bpfel-unknown-none/release/weir-shipper" "$3/weir-shipper${variant:+-$variant}.bpf.o"
    done
}

# hashes DIR: a line for each object, as the lock has it
hashes() {
    for variant in '' plain; do
        name=weir-shipper${variant:+-$variant}.bpf.o
        echo "\"$name\" = \"$(sha256sum "$1/$name" | cut -d' ' -f1)\""
    done
}

versions() {
    echo "rustc = \"$("$rustc" --version)\""
    echo "llvm = \"$("$rustc" -vV | sed -n 's/^LLVM version: //p')\""
    echo "bpf-linker = \"$(bpf-linker --version | sed 's/^bpf-linker //')\""
}

case "${1:-}" in
setup)
    setup
    ;;
build)
    mkdir -p "$committed"
    compile "$root" "$root/target/ebpf" "$committed"
    {
        echo "# Written by scripts/ebpf.sh build: what made the objects beside this file, and their SHA-256."
        versions
        hashes "$committed"
    } >"$lock"
    cat "$lock"
    ;;
objects)
    compile "$root" "${WEIR_EBPF_TARGET:-$root/target/ebpf}" "$2"
    ;;
verify)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    hashes "$committed" >"$work/hashes"
    grep '\.bpf\.o' "$lock" | cmp -s - "$work/hashes" ||
        { echo "the objects in shipper/ebpf are not those that ebpf.lock records" >&2; exit 1; }
    mkdir "$work/src" "$work/built"
    cp -r "$root/shipper-ebpf" "$work/src/"
    rm -rf "$work/src/shipper-ebpf/target"
    compile "$work/src" "$work/target" "$work/built"
    versions >"$work/versions"
    if grep -v -e '^#' -e '\.bpf\.o' "$lock" | cmp -s - "$work/versions"; then
        for object in "$work"/built/*; do
            cmp "$committed/$(basename "$object")" "$object"
        done
        echo "the committed objects are what the source gives"
    else
        echo "warning: other tools than ebpf.lock's; the source builds, its bytes were not compared:" >&2
        grep -v -e '^#' -e '\.bpf\.o' "$lock" | diff - "$work/versions" >&2 || true
    fi
    ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 64
    ;;
esac
