#!/bin/sh
# After a removal. A node that runs goes on running; homes, snapshots, their user and configurations stay, also at a purge,
# which takes away the package's own files and the links by which units were enabled.
set -e
root=${DPKG_ROOT:-}
if [ "$1" = purge ]; then
	rm -f "$root"/etc/systemd/system/*.wants/nodevisor@*.service
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
