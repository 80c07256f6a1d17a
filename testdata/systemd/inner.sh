#!/bin/bash
# inner.sh: PID 1 of the namespaces that up.sh makes. It builds the root and becomes systemd.
set -euo pipefail
read -r outside _ < /proc/self/stat # /proc is still the machine's: our pid out there
S=$SD_IN_STATE
mount --make-rprivate /
mkdir -p "$S/t"
mount -t tmpfs -o "size=$SD_IN_SIZE,mode=755" top "$S/t"
mkdir "$S/t/up" "$S/t/wk" "$S/t/root"
R=$S/t/root
mount -t overlay -o "lowerdir=$SD_IN_LOWER,upperdir=$S/t/up,workdir=$S/t/wk" overlay "$R"

# Quiet, offline, and the same each time.
rm -rf "$R"/etc/systemd/system/*.wants "$R/etc/resolv.conf"
: > "$R/etc/resolv.conf"
echo "$SD_IN_NAME" > "$R/etc/hostname"
hostname "$SD_IN_NAME"
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$SD_IN_NAME" > "$R/etc/hosts"
head -c16 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$R/etc/machine-id"
echo >> "$R/etc/machine-id"
mkdir -p "$R/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nForwardToSyslog=no\n' > "$R/etc/systemd/journald.conf.d/test.conf"
for unit in $SD_IN_UNITS; do cp "$unit" "$R/etc/systemd/system/"; done

# The file systems of the kernel: /proc/sys and /sys read-only, as in a container.
mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
mount --bind "$R/proc/sys" "$R/proc/sys"
mount -o remount,bind,ro "$R/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys"
if [ "$SD_IN_MODE" = unified ]; then
  mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755,nosuid,nodev,noexec cgroup "$R/sys/fs/cgroup"
  mkdir "$R"/sys/fs/cgroup/{unified,systemd}
  mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup/unified"
  mount -t cgroup -o none,name=systemd cgroup "$R/sys/fs/cgroup/systemd"
  for c in $SD_IN_V1; do
    mkdir "$R/sys/fs/cgroup/$c"
    mount -t cgroup -o "$c" "$c" "$R/sys/fs/cgroup/$c"
  done
  mount -o remount,ro "$R/sys/fs/cgroup"
fi
mount -t tmpfs -o mode=755,nosuid dev "$R/dev"
mkdir "$R"/dev/{pts,shm}
for n in null zero full random urandom tty fuse loop-control; do
  [ -e "/dev/$n" ] || continue
  touch "$R/dev/$n"
  mount --bind "/dev/$n" "$R/dev/$n"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
ln -s pts/ptmx "$R/dev/ptmx"
ln -s /proc/self/fd "$R/dev/fd"
for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%:*}" "$R/dev/${i#*:}"; done
mount -t tmpfs -o mode=1777,nosuid,nodev shm "$R/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev run "$R/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$R/tmp"

for b in $SD_IN_BIND; do
  IFS=: read -r src dst opt <<< "$b"
  dst=${dst:-$src}
  if [ -d "$src" ]; then
    mkdir -p "$R$dst"
  else
    mkdir -p "$(dirname "$R$dst")"
    [ -e "$R$dst" ] || : > "$R$dst"
  fi
  mount --rbind "$src" "$R$dst"
  [ "${opt-}" != ro ] || mount -o remount,bind,ro "$R$dst"
done
ip link set lo up
mkdir -p "$R/mnt/.old"
cd "$R"
pivot_root . mnt/.old
echo "$outside" > "/mnt/.old$S/pid"
cd /
# LoadCredential= and the sandbox of units need a shared /; the dropped rights would reach the machine's kernel and clock.
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=nodevisor-test /bin/bash -c '
  umount -l /mnt/.old; rmdir /mnt/.old; mount --make-rshared /
  exec setpriv --bounding-set -sys_module,-sys_time,-sys_rawio \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no'
