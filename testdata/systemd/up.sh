#!/bin/bash
# up.sh [NAME]: boots the machine's own systemd as PID 1 of fresh pid, mount, uts, ipc, network and cgroup namespaces, in
# about half a second. Its root is an overlay of / with a tmpfs on top: nothing inside changes the machine.
# Needs root, util-linux, iproute2, systemd and dbus (make deps). exec.sh runs a command inside, down.sh ends it.
#
#   SD_STATE   folder of this host's state                       (/run/nodevisor-test/NAME)
#   SD_BIND    "SRC[:DST[:ro]] ..." bind mounts                   (none)
#   SD_UNITS   "FILE ..." units put into /etc/systemd/system      (none)
#   SD_CGROUP  hybrid: v1 limits of memory and tasks bite; unified: pure cgroup v2, as Debian 12 boots   (hybrid)
#   SD_SIZE    size of the tmpfs on top                           (2g)
#   SD_LOWER   lower directory of the overlay                     (/)
#
# /tmp is a fresh tmpfs inside; the overlay holds the root file system alone, not what is mounted below it (SD_BIND does).
# A power cut is SD_FAST=1 down.sh; with the data in SD_BIND, up.sh is then the next boot.
set -euo pipefail
NAME=${1:-nodevisor} STATE=${SD_STATE:-/run/nodevisor-test/${1:-nodevisor}}
HERE=$(cd "$(dirname "$0")" && pwd)
die() { echo "up.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "needs root"
for p in /lib/systemd/systemd /usr/bin/dbus-daemon /bin/ip; do
  [ -x "$p" ] || [ -n "${SD_LOWER-}" ] || die "$p is missing; make deps installs it"
done
if [ -s "$STATE/pid" ] && [ -d "/proc/$(cat "$STATE/pid")" ]; then
  echo "$NAME is up already, pid $(cat "$STATE/pid")"
  exit 0
fi
rm -rf "$STATE"
mkdir -p "$STATE"

# Control groups of its own below ours: the booted systemd moves everything in its root group, and must never see the
# machine's.
v2=$(awk '$3=="cgroup2"{print $2; exit}' /proc/mounts)
if [ -z "$v2" ]; then
  v2=$STATE/cgroup2
  mkdir -p "$v2"
  mount -t cgroup2 cgroup2 "$v2"
  echo "$v2" > "$STATE/unmount"
fi
mode=${SD_CGROUP:-hybrid}
[ "$v2" != /sys/fs/cgroup ] || mode=unified
ours() { awk -F: -v c="$1" '$2==c{print $3}' /proc/self/cgroup; }
unified=$(awk -F: '$1==0{print $3}' /proc/self/cgroup)
groups=("$v2${unified%/}/$NAME") v1=()
if [ "$mode" = hybrid ]; then
  for c in systemd memory pids cpu cpuacct; do
    at=/sys/fs/cgroup/$c key=$c
    mountpoint -q "$at" || continue
    [ "$c" != systemd ] || key=name=systemd
    below=$(ours "$key")
    groups+=("$at${below%/}/$NAME")
    [ "$c" = systemd ] || v1+=("$c")
  done
fi
mkdir -p "${groups[@]}"
printf '%s\n' "${groups[@]}" > "$STATE/cgroups"

export SD_IN_NAME=$NAME SD_IN_STATE=$STATE SD_IN_LOWER=${SD_LOWER:-/} SD_IN_MODE=$mode SD_IN_V1="${v1[*]-}"
export SD_IN_BIND=${SD_BIND-} SD_IN_UNITS=${SD_UNITS-} SD_IN_SIZE=${SD_SIZE:-2g}
(
  for g in "${groups[@]}"; do echo "$BASHPID" > "$g/cgroup.procs"; done
  exec setsid unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child bash "$HERE/inner.sh" \
    > "$STATE/console.log" 2>&1 < /dev/null
) &
outer=$!
echo "$outer" > "$STATE/unshare.pid"
booted() { [ -s "$STATE/pid" ] && nsenter -t "$(cat "$STATE/pid")" -m -p test -S /run/systemd/private 2>/dev/null; }
for ((i = 0; i < 1500; i++)); do # at most 30 s
  kill -0 "$outer" 2>/dev/null || { cat "$STATE/console.log" >&2; die "it ended while booting"; }
  ! booted || break
  sleep 0.02
done
pid=$(cat "$STATE/pid")
state=$(timeout 60 nsenter -t "$pid" -a systemctl is-system-running --wait) || true
echo "$NAME is up: pid $pid, $state, cgroups $mode"
[ "$state" = running ] || { nsenter -t "$pid" -a systemctl --failed --no-pager --plain --no-legend; [ "$state" = degraded ]; }
