#!/bin/bash
# exec.sh NAME COMMAND...        runs COMMAND inside the host that up.sh booted
# exec.sh NAME --put SRC DST     copies a file in, with its mode
# exec.sh NAME --get SRC DST     copies a file out
set -euo pipefail
name=$1
shift
pid=$(cat "${SD_STATE:-/run/nodevisor-test/$name}/pid")
case ${1-} in
  --put) exec cp -p -- "$2" "/proc/$pid/root$3" ;;
  --get) exec cp -p -- "/proc/$pid/root$2" "$3" ;;
esac
exec nsenter -t "$pid" -a -- "$@"
