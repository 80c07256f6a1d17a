#!/bin/sh
# After an installation or an upgrade, of the deb as of the rpm. It starts, restarts and stops nothing: when a node is
# restarted with the new supervisor is its operator's to decide.
set -e
root=${DPKG_ROOT:-}
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers ${root:+--root="$root"} nodevisor.conf
elif [ -z "$root" ] && command -v useradd >/dev/null 2>&1 && ! id nodevisor >/dev/null 2>&1; then
	useradd --system --user-group --home-dir /var/lib/nodevisor --no-create-home --shell /usr/sbin/nologin nodevisor
fi
if command -v systemd-tmpfiles >/dev/null 2>&1; then
	systemd-tmpfiles ${root:+--root="$root"} --create nodevisor.conf || true # 73: it could not be done here, in a chroot
elif [ -z "$root" ]; then
	install -d -m 0755 -o nodevisor -g nodevisor /var/lib/nodevisor
	chgrp nodevisor /etc/nodevisor && chmod 0750 /etc/nodevisor
fi
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
