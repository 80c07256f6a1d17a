#!/usr/bin/env bash
# client.sh DIR  unpacks PostgreSQL's client programs of Debian's next release into DIR/bin
#
# Debian 12 has pg_dump 15, which knows no zstd; archives are made with it where pg_dump is 16 or newer. Nothing is
# installed on the machine: apt works on lists, a cache and a status of its own, checks Debian's signature, and the programs
# run with the C library that they were built for.
set -euo pipefail
suite=trixie major=17
dir=$(realpath -m "$1")
[ ! -x "$dir/bin/pg_dump" ] || exit 0
work=$dir.partial
rm -rf "$work"
mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/root" "$work/bin"
mirror=$(awk '$1 == "URIs:" && $2 ~ /debian\/?$/ { print $2; exit } $1 == "deb" && $2 ~ /debian\/?$/ { print $2; exit }' \
	/etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $suite main" >"$work/apt/sources.list"
: >"$work/apt/status"
apt=(apt-get -q -q -y --download-only -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State="$work/apt"
	-o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt" -o APT::Install-Recommends=false -o APT::Sandbox::User=root
	-o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
"${apt[@]}" update
"${apt[@]}" install "postgresql-client-$major"
for deb in "$work"/apt/archives/*.deb; do
	case ${deb##*/} in perl* | libperl* | netbase* | sensible-utils*) ;; # of the wrapper that picks a version, which isn't used
	*) dpkg-deb --extract "$deb" "$work/root" ;; esac
done
lib=$(dirname "$(find "$work/root/usr/lib" -maxdepth 2 -name 'ld-linux*.so*' | head -n 1)")
loader=$(basename "$(find "$lib" -maxdepth 1 -name 'ld-linux*.so*' | head -n 1)")
lib=$dir${lib#"$work"}
for program in pg_dump pg_restore psql; do
	printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
		"$lib/$loader" "$lib" "$dir/root/usr/lib/postgresql/$major/bin/$program" >"$work/bin/$program"
	chmod 755 "$work/bin/$program"
done
rm -rf "$work/apt" "$dir"
mv "$work" "$dir"
"$dir/bin/pg_dump" --version
