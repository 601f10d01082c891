#!/usr/bin/env bash
# Boots the systemd of a folder that holds a whole system (debootstrap makes one) as PID 1 of namespaces of its own, which do not see the
# machine around them: its files are unmounted before systemd begins, which clears /tmp and writes to /etc. Ends with it. Needs root.
#   fresh_machine.sh SYSTEM SHARED     SHARED appears as /mnt; the network is the caller's
set -euo pipefail
system=$(realpath "$1") shared=$(realpath "$2")
group=/sys/fs/cgroup/systemd/streamtrain-$$
mkdir "$group"
trap 'sleep 0.2; find "$group" -depth -type d -exec rmdir {} \;' EXIT
export system shared group
unshare --pid --fork --kill-child --mount --uts --ipc --propagation private bash -euo pipefail -c '
echo 0 >"$group/cgroup.procs"
mount --bind "$system" "$system"
cd "$system"
mount -t proc proc proc
# What is the kernel s, and so the machine s around this one.
for kept in sys sysrq-trigger irq bus fs; do
  [ -e proc/$kept ] || continue
  mount --bind proc/$kept proc/$kept
  mount -o remount,bind,ro proc/$kept
done
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
  set -- $node
  mknod -m 666 dev/$1 c 1 $2
done
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$shared" mnt
pivot_root . .
umount --lazy .
cd /
if [ -e "$system" ]; then
  echo "the machine around this one can be seen: not booted" >&2
  exit 1
fi
hostname "$(cat /etc/hostname)"
exec unshare --cgroup bash -euc "
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -o remount,ro /sys/fs/cgroup
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin container=test \
  setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog \
  /lib/systemd/systemd --system --unit=multi-user.target --show-status=no"
'
