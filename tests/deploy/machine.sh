#!/usr/bin/env bash
# Boots systemd as PID 1 of namespaces of its own, with the units of deploy/systemd and no others, and runs a script under it.
# The machine is read-only in there, but for FOLDER and file systems in memory, and systemd's own units, which would clear
# /tmp and write to /etc, are hidden. Nothing is left when it ends. Needs root.
#
#   machine.sh REPOSITORY FOLDER PYTHON PACKAGES
#
# REPOSITORY, the prefix of an interpreter and a folder of packages for it appear as /opt/repository, /opt/python and /opt/packages,
# as homes and /tmp are out of reach of the units.
# FOLDER appears as /run/test and holds
#   etc/        laid over /etc: streamtrain/clicks.toml, credstore/..., systemd/system/...
#   streamtrain the program, which appears as /opt/streamtrain/bin/streamtrain
#   drive.sh    is run; its output goes to drive.out, and the machine ends with it
#   var/        is /var
set -euo pipefail
repository=$(realpath "$1") folder=$(realpath "$2") python=$(realpath "$3") packages=$(realpath "$4")
group=/sys/fs/cgroup/systemd/streamtrain-$$
mkdir "$group"
trap 'find "$group" -depth -type d -exec rmdir {} \;' EXIT
export repository folder python packages group
unshare --pid --fork --kill-child --mount --uts --ipc --propagation private bash -euo pipefail -c '
echo 0 >"$group/cgroup.procs"
mount -t tmpfs tmpfs /run
mkdir -p /run/test /run/systemd/system /run/etc/upper /run/etc/work /run/opt/{repository,python,packages}
mount --bind "$folder" /run/test
for place in repository python packages; do mount --bind "${!place}" /run/opt/$place; done
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
mount --bind /run/test/var /var
mount -t proc proc /proc
mount -t tmpfs tmpfs /usr/lib/systemd/system
for hidden in /etc/systemd /usr/lib/tmpfiles.d /usr/lib/systemd/system-generators /opt /tmp /root /home /dev; do
  if [ -d $hidden ]; then mount -t tmpfs tmpfs $hidden; fi
done
for node in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
  set -- $node
  mknod -m 666 /dev/$1 c 1 $2
done
mkdir -p /dev/shm /dev/pts /etc/systemd/system /opt/streamtrain/bin /opt/{repository,python,packages}
for place in repository python packages; do mount --move /run/opt/$place /opt/$place; done
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
for point in $(findmnt --raw --noheadings --output TARGET | sort -u); do
  case $point in
    /run* | /var | /proc* | /sys* | /dev* | /opt | /tmp | /root | /home | /etc*) ;;
    /usr/lib/*) ;;
    *) mount -o remount,bind,ro "$point" ;;
  esac
done
if touch / 2>/dev/null || touch /opt/repository 2>/dev/null; then
  echo "the machine could be written to from inside: not booted" >&2
  exit 1
fi
for target in sysinit basic shutdown umount network-online multi-user; do
  printf "[Unit]\nDefaultDependencies=no\n" >/usr/lib/systemd/system/$target.target
done
cat >/usr/lib/systemd/system/drive.service <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/bash -eu /run/test/drive.sh
StandardOutput=append:/run/test/drive.out
StandardError=append:/run/test/drive.out
END
cp /opt/repository/deploy/systemd/*.service /etc/systemd/system
cp -r /run/test/etc/. /etc
cp /run/test/streamtrain /opt/streamtrain/bin/
echo "streamtrain:x:990:990::/var/lib/streamtrain:/usr/sbin/nologin" >>/etc/passwd
echo "streamtrain:x:990:" >>/etc/group
exec unshare --cgroup bash -c "
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
# No place for other hierarchies: systemd would make groups there that outlive it.
mount -o remount,ro /sys/fs/cgroup
# As systemd does outside of containers: credentials are mounted for a service from a namespace below.
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin container=test \
  /lib/systemd/systemd --system --unit=drive.service --log-target=null"
'
