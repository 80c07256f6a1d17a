#!/bin/sh
# build.sh [deb] [rpm]: the packages, their bill of materials and their digests, into dist/. `make packages` calls it.
#
#   VERSION     of the packages                 (version.sh)
#   ARCH        amd64 or arm64                  (this machine's)
#   OUT         where to                        (dist)
#   NFPM        the packager                    (.nodevisor-tools/nfpm-VERSION, which make builds)
#   MAINTAINER, HOMEPAGE                        as a distributor wants them
#   SOURCE_DATE_EPOCH                           (the time of the last commit)
#
# Two builds of one commit give the same bytes, wherever, whenever and by whomever they are made.
set -eu
cd "$(dirname "$0")/.."
export VERSION="${VERSION:-$(packaging/version.sh)}" ARCH="${ARCH:-$(go env GOARCH)}"
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
export MAINTAINER="${MAINTAINER:-Nodevisor maintainers <maintainers@nodevisor.invalid>}"
export HOMEPAGE="${HOMEPAGE:-https://nodevisor.invalid/}"
export LC_ALL=C TZ=UTC CGO_ENABLED=0
umask 022
OUT=${OUT:-dist} DESCRIBED=${DESCRIBED:-$(git describe --tags --always --dirty)}
: "${NFPM:?make packages says where it is}"
stage=$(mktemp -d) # the path is in no file: the programs are built with -trimpath, nfpm is told the names on the target
trap 'rm -rf "$stage"' EXIT
root=$stage/root

compile() { # GOARCH DIR
	mkdir -p "$2"
	GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.release=$DESCRIBED" -o "$2/" ./cmd/supervisor ./cmd/fetch
}
put() { # MODE FILE DESTINATION
	install -D -m "$1" "$2" "$root$3"
}
packed() { # FILE DESTINATION: as Debian wants manuals and changelogs
	mkdir -p "$(dirname "$root$2")"
	gzip -9 -n -c "$1" >"$root$2.gz"
	chmod 0644 "$root$2.gz"
}

compile "$ARCH" "$stage/bin"
here=$stage/bin
[ "$ARCH" = "$(go env GOHOSTARCH)" ] || { here=$stage/here && compile "$(go env GOHOSTARCH)" "$here"; }
put 0755 "$stage/bin/supervisor" /usr/bin/supervisor
put 0755 "$stage/bin/fetch" /usr/libexec/nodevisor/fetch

put 0644 packaging/systemd/nodevisor@.service /usr/lib/systemd/system/nodevisor@.service
put 0644 packaging/systemd/nodevisor.sysusers /usr/lib/sysusers.d/nodevisor.conf
put 0644 packaging/systemd/nodevisor.tmpfiles /usr/lib/tmpfiles.d/nodevisor.conf
put 0644 packaging/example.toml /etc/nodevisor/example.toml

"$here/supervisor" man "$stage/man" 2>/dev/null
for page in "$stage"/man/*.1; do packed "$page" "/usr/share/man/man1/${page##*/}"; done
packed packaging/nodevisor.7 /usr/share/man/man7/nodevisor.7
"$here/supervisor" completion bash >"$stage/bash"
"$here/supervisor" completion zsh >"$stage/zsh"
"$here/supervisor" completion fish >"$stage/fish"
put 0644 "$stage/bash" /usr/share/bash-completion/completions/supervisor
put 0644 "$stage/zsh" /usr/share/zsh/vendor-completions/_supervisor
put 0644 "$stage/zsh" /usr/share/zsh/site-functions/_supervisor
put 0644 "$stage/fish" /usr/share/fish/vendor_completions.d/supervisor.fish

doc=/usr/share/doc/nodevisor
find docs -name '*.md' | while read -r page; do put 0644 "$page" "$doc/${page#docs/}"; done
put 0644 README.md $doc/README.md
put 0644 LICENSE $doc/LICENSE
put 0644 packaging/debian/copyright $doc/copyright
packed CHANGELOG.md $doc/changelog
printf 'nodevisor (%s-1) unstable; urgency=medium\n\n  * What changed is in changelog.gz.\n\n -- %s  %s\n' \
	"$VERSION" "$MAINTAINER" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" >"$stage/changelog"
packed "$stage/changelog" $doc/changelog.Debian
for dir in grafana prometheus; do # what a monitoring system reads
	for file in packaging/$dir/*.json packaging/$dir/*.yml; do
		case $file in *\** | *_test.yml) continue ;; esac
		put 0644 "$file" "/usr/share/nodevisor/$dir/${file##*/}"
	done
done

mkdir -p "$OUT"
# A bill of materials is this architecture's: it holds the digests of the programs.
sbom=$OUT/nodevisor_${VERSION}_$ARCH.cdx.json
go run ./packaging/sbom -version "$VERSION" -modcache "$(go env GOMODCACHE)" -out "$sbom" -notices "$stage/notices" \
	"$stage/bin/supervisor" "$stage/bin/fetch"
packed "$sbom" $doc/sbom.cdx.json
packed "$stage/notices" $doc/third-party-licenses

config=$stage/nfpm.yaml
cp packaging/nfpm.yaml "$config"
# nfpm's types doc and license are rpm's alone: the deb would lack what they mark.
(cd "$root" && find . -type f | sort) | while read -r file; do
	file=${file#.} mode=0644
	[ ! -x "$root$file" ] || mode=0755
	printf '  - src: "%s"\n    dst: "%s"\n    file_info: {mode: %s, owner: root, group: root}\n' "$root$file" "$file" "$mode"
	case $file in
	/etc/*) printf '    type: "config|noreplace"\n' ;;
	*/vendor-completions/* | */changelog.Debian.gz | $doc/copyright) printf '    packager: deb\n' ;;
	*/site-functions/* | $doc/LICENSE) printf '    packager: rpm\n' ;;
	esac
done >>"$config"
[ $# -gt 0 ] || set -- deb rpm
for format in "$@"; do "$NFPM" package --config "$config" --packager "$format" --target "$OUT/" >&2; done
(cd "$OUT" && sha256sum nodevisor[_-]*"$VERSION"* >SHA256SUMS && cat SHA256SUMS)
