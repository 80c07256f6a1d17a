#!/usr/bin/env bash
# build.sh DIR: what a virtual machine boots: Debian's kernel as DIR/vmlinuz, and DIR/initrd.img with the few modules that
# it needs, busybox, and the init beside this script. What is missing comes from apt; DIR may be removed at any time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
as_root=$([ "$(id -u)" = 0 ] || echo sudo)

missing=()
for p in qemu-system-x86:qemu-system-x86_64 busybox-static:busybox; do
	command -v "${p#*:}" >/dev/null || missing+=("${p%:*}")
done
if [ ${#missing[@]} != 0 ] || [ ! -e "$dir/vmlinuz" ]; then
	$as_root apt-get update -q
fi
if [ ${#missing[@]} != 0 ]; then
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" seabios
fi

mkdir -p "$dir"
if [ ! -e "$dir/vmlinuz" ]; then
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p')
	(cd "$dir" && apt-get download -q "$package" && dpkg-deb -x "$package"_*.deb kernel && rm "$package"_*.deb)
	cp "$dir"/kernel/boot/vmlinuz-* "$dir/vmlinuz"
fi

root=$dir/root
rm -rf "$root"
mkdir -p "$root"/{bin,modules,proc,sys,dev,data,tmp}
cp "$(command -v busybox)" "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"
n=10 # the order in which they are loaded
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console libcrc32c xfs; do
	cp "$(find "$dir/kernel/lib/modules" -name "$m.ko")" "$root/modules/$n-$m.ko"
	n=$((n + 1))
done
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$dir/initrd.new"
mv "$dir/initrd.new" "$dir/initrd.img"
