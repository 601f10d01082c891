#!/usr/bin/env bash
# Runs a command as root of a copy of this machine: its file system is laid over the real one and written in memory, its processes
# and its network (loopback alone) are its own. Nothing of it is left, and it can harm nothing outside. Needs root.
#   copy_of_root.sh FOLDER COMMAND...     FOLDER is shared: what the command leaves there is seen outside
set -euo pipefail
folder=$(realpath "$1")
shift
repository=$(realpath "$(dirname "$0")/../..")
export folder repository
exec unshare --pid --fork --kill-child --mount --net --uts --ipc --propagation private bash -euo pipefail -c '
mount -t tmpfs tmpfs /mnt
mkdir /mnt/{upper,work,root,changes,spare}
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t tmpfs tmpfs dev
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
  set -- $node "$@"
  mknod -m 666 dev/$1 c 1 $2
  shift 2
done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs tmp
chmod 1777 tmp dev/shm
# The repository may lie where nothing of the machine is seen: in /tmp, or on a file system of its own.
if ! [ -e ".$repository" ]; then
  mkdir -p ".$repository"
  mount -t overlay overlay -o lowerdir="$repository",upperdir=/mnt/changes,workdir=/mnt/spare ".$repository"
fi
mkdir -p ".$folder" mnt/upper
mount --bind "$folder" ".$folder"
mount --rbind /mnt/upper mnt/upper
ip link set lo up
exec chroot . "$@"
' bash "$@"
