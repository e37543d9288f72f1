#!/bin/busybox sh
# The first process of a guest of scripts/kernels.sh.
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracing /sys/kernel/tracing
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/netns
for module in /mod/*.ko; do
    insmod "$module" 2>/dev/null || echo "GUEST module $(basename "$module") is not loaded"
done
ip link set lo up
if CI=true RUST_BACKTRACE=0 kernel-guest 2>&1 | sed 's/^/GUEST /'; then :; fi
poweroff -f
