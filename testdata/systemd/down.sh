#!/bin/bash
# down.sh [NAME]: an orderly poweroff of at most 10 s, then SIGKILL; nothing is left behind. SD_FAST=1 is a power cut.
set -uo pipefail
NAME=${1:-nodevisor} STATE=${SD_STATE:-/run/nodevisor-test/${1:-nodevisor}}
[ -d "$STATE" ] || exit 0
pid=$(cat "$STATE/pid" 2>/dev/null || true) outer=$(cat "$STATE/unshare.pid" 2>/dev/null || true)
gone() { # PID TRIES: waits for its end
  for ((i = 0; i < $2; i++)); do
    [ -n "$1" ] && [ -d "/proc/$1" ] || return 0
    sleep 0.02
  done
  return 1
}
if [ -n "$pid" ] && [ -d "/proc/$pid" ]; then
  if [ "${SD_FAST-}" != 1 ]; then
    timeout 5 nsenter -t "$pid" -a systemctl poweroff --no-wall > /dev/null 2>&1 || true
    gone "$pid" 500
  fi
  [ ! -d "/proc/$pid" ] || kill -KILL "$pid" 2>/dev/null # PID 1 of the namespace: it takes all inside with it
fi
gone "$outer" 1500
while read -r d; do
  [ ! -d "$d" ] || find "$d" -depth -type d -exec rmdir {} + 2>/dev/null
done < "$STATE/cgroups"
[ ! -f "$STATE/unmount" ] || umount "$(cat "$STATE/unmount")"
rm -rf "$STATE"
[ -n "${SD_STATE-}" ] || rmdir --ignore-fail-on-non-empty /run/nodevisor-test
