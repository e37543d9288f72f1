#!/usr/bin/env bash
# Runs Weir's kernel programs on other kernels: `make test-kernels`. Debian's 5.10, 6.1, 6.12 and its newest kernel boot
# in qemu, without KVM, from an initramfs that holds `kernel-guest` (tests/integration/src/bin) and the few programs that
# it calls. No kernel is installed: the packages are unpacked below .cache/kernels.
#
#   scripts/kernels.sh [SERIES...]     5.10 6.1 6.12 newest, or any of them
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "$0")/env.sh"

store=$cache/kernels
# A guest takes 20 to 60 s under emulation; one that hangs must not hang the run.
boot_seconds=${BOOT_SECONDS:-600}
modules='veth nf_tables nft_counter nft_objref nft_ct nft_masq nft_chain_nat vxlan ipip bridge 8021q sch_ingress cls_bpf'

main() {
    "$root/scripts/setup.sh" kernels
    mkdir -p "$store"
    [ $# != 0 ] || set -- 5.10 6.1 6.12 newest
    local series passed=0 failed=0
    programs
    base_image
    for series in "$@"; do
        fetch "$series"
        image "$series"
        if boot "$series"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    done
    printf '%d passed, %d failed\n' "$passed" "$failed"
    [ "$failed" = 0 ]
}

# apt with lists of its own: kernels of several Debian releases, and nothing of it in the system's state.
private_apt() {
    local command=$1
    shift
    "$command" -q -o Dir::Etc::sourcelist="$store/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State::lists="$store/lists" -o Dir::Cache="$store/apt" -o Acquire::Languages=none \
        -o APT::Sandbox::User=root "$@"
}

lists() {
    [ -z "${lists_read:-}" ] || return 0
    lists_read=yes
    mkdir -p "$store/lists/partial" "$store/apt/archives/partial"
    cat >"$store/sources.list" <<-'SOURCES'
	deb http://deb.debian.org/debian bookworm main
	deb http://deb.debian.org/debian-security bookworm-security main
	deb http://deb.debian.org/debian-security bullseye-security main
	deb http://deb.debian.org/debian trixie-backports main
	SOURCES
    private_apt apt-get update >"$store/update.log" 2>&1 ||
        { tail -n 5 "$store/update.log" >&2 && die 'apt-get could not read the lists of kernel packages'; }
}

# fetch SERIES: unpacks the newest kernel of a series, once. Old versions leave the archive, so the meta package is asked.
fetch() {
    local series=$1 pattern version package
    [ -e "$store/$1/release" ] && return
    lists
    case $series in
    newest) pattern='.' ;;
    *) pattern="^${series//./\\.}\\." ;;
    esac
    version=$({ private_apt apt-cache madison linux-image-cloud-amd64 &&
        private_apt apt-cache madison linux-image-6.12-cloud-amd64; } |
        awk -F ' *[|] *' '{ print $2, $1 }' | grep -E "$pattern" | sort -rV | head -n 1)
    [ -n "$version" ] || die "Debian has no kernel $series"
    package=$(private_apt apt-cache show "${version#* }=${version% *}" | sed -n 's/^Depends: //p' | grep -o 'linux-image-[^ ,]*' | head -n 1)
    # Newer ones are cut in pieces.
    package=$({ echo "$package" && private_apt apt-cache show "$package" | sed -n 's/^Depends: //p' |
        grep -oE 'linux-(binary|modules)-[^ ,]*'; } | sort -u | xargs)
    say "fetching $package"
    rm -rf "${store:?}/$series"
    mkdir -p "$store/$series"
    # shellcheck disable=SC2086 # several packages
    (cd "$store/$series" && private_apt apt-get download $package >"$store/download.log" 2>&1) ||
        { tail -n 5 "$store/download.log" >&2 && die "apt-get could not download $package"; }
    for package in "$store/$series"/*.deb; do
        dpkg -x "$package" "$store/$series/root"
        rm "$package"
    done
    [ -d "$store/$series/root/lib/modules" ] || ln -s usr/lib "$store/$series/root/lib"
    ls "$store/$series"/root/lib/modules >"$store/$series/release"
}

# What runs in the guest.
programs() {
    (cd "$root" && cargo build --locked --quiet -p weir-integration-tests --bin kernel-guest --bin traffic)
    target=$(cd "$root" && cargo metadata --locked --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/debug
}

# place FOLDER FILE...: copies programs with the libraries that they are linked to.
place() {
    local folder=$1 file library
    shift
    for file in "$@"; do
        install -D "$file" "$folder$file"
        ldd "$file" 2>/dev/null | grep -o '/[^ )]*' | while read -r library; do
            [ -e "$folder$library" ] || install -D "$library" "$folder$library"
        done
    done
}

base_image() {
    local folder=$store/base tool
    rm -rf "$folder"
    mkdir -p "$folder"/{bin,proc,sys,dev,run/netns,tmp,etc,mod}
    cp "$(command -v busybox)" "$folder/bin/busybox"
    for tool in ip nft ethtool sysctl; do
        place "$folder" "$(readlink -f "$(command -v "$tool")")"
        ln -sf "$(readlink -f "$(command -v "$tool")")" "$folder/bin/$tool"
    done
    for tool in kernel-guest traffic; do
        strip -o "$store/stripped" "$target/$tool"
        place "$folder" "$store/stripped"
        mv "$folder$store/stripped" "$folder/bin/$tool"
    done
    install -m 755 "$root/scripts/kernels-init.sh" "$folder/init"
    archive "$folder" >"$store/base.cpio.gz"
}

archive() {
    (cd "$1" && find . | cpio --quiet -o -H newc | gzip -1)
}

# image SERIES: the base and that kernel's modules, in the order in which they load.
image() {
    local series=$1 folder=$store/$1/overlay tree name path number=10
    tree=$store/$series/root/lib/modules/$(cat "$store/$series/release")
    rm -rf "$folder"
    mkdir -p "$folder/mod"
    for name in $modules; do
        while read -r path; do
            [ -z "$(find "$folder/mod" -name "*-$(basename "$path" .xz)")" ] || continue
            case $path in
            *.xz) xz -dc "$path" >"$folder/mod/$number-$(basename "$path" .xz)" ;;
            *) cp "$path" "$folder/mod/$number-$(basename "$path")" ;;
            esac
            number=$((number + 1))
        done < <(needed "$tree" "$name")
    done
    archive "$folder" >"$store/$series/overlay.cpio.gz"
    cat "$store/base.cpio.gz" "$store/$series/overlay.cpio.gz" >"$store/$series/initrd"
}

# needed TREE MODULE: paths of the modules that a module needs, then its own; nothing when it is built in.
needed() {
    local path dependency
    path=$(find "$1/kernel" -name "$2.ko" -o -name "$2.ko.xz" | head -n 1)
    [ -n "$path" ] || return 0
    { case $path in *.xz) xz -dc "$path" ;; *) cat "$path" ;; esac; } | tr '\0' '\n' |
        sed -n 's/^depends=//p' | tr ',' '\n' | while read -r dependency; do
        [ -z "$dependency" ] || needed "$1" "$dependency"
    done
    printf '%s\n' "$path"
}

# boot SERIES: qemu ends with 0 even when the guest panics, so the guest's last line decides.
boot() {
    local series=$1 log=$store/$1/console.log begin=$SECONDS
    printf '=== kernel %s (%s)\n' "$series" "$(cat "$store/$series/release")"
    timeout "$boot_seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024M \
        -kernel "$(find "$store/$series/root" -name 'vmlinuz*' | head -n 1)" -initrd "$store/$series/initrd" \
        -append 'console=ttyS0 panic=-1 loglevel=4 mitigations=off' \
        -nographic -no-reboot -nic none </dev/null >"$log" 2>&1 || true
    tr -d '\r' <"$log" | sed -n 's/^GUEST //p'
    if tr -d '\r' <"$log" | grep -qx 'GUEST done'; then
        printf 'kernel %s: passed in %d s\n' "$series" $((SECONDS - begin))
    else
        tail -n 30 "$log"
        printf 'kernel %s: FAILED after %d s; its console is in %s\n' "$series" $((SECONDS - begin)) "${log#"$root"/}"
        return 1
    fi
}

main "$@"
