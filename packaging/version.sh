#!/bin/sh
# version.sh [DESCRIPTION]: the version of the packages, from `git describe --tags --long --always --dirty` or from DESCRIPTION.
# Both dpkg and rpm order it as it is meant:
#
#   v1.2.3-0-gabc        1.2.3               the tag itself
#   v1.2.3-rc.1-0-gabc   1.2.3~rc.1          "~" sorts before the release
#   v1.2.3-5-gabc        1.2.3+5.gabc        five commits later
#   abc                  0.0.0+123.gabc      no tag yet: 123 commits, so that a later build is a higher version
#
# A tree with changes of its own ends in ".dirty" (or "+dirty").
set -eu
cd "$(dirname "$0")/.."
described=${1:-$(git describe --tags --long --always --dirty --match 'v[0-9]*')}
plain=${described%-dirty}
case $plain in
v[0-9]*-*-g*)
	hash=${plain##*-}
	rest=${plain%-*}
	commits=${rest##*-}
	tag=${rest%-*}
	version=${tag#v}
	case $version in *-*) version="${version%%-*}~$(printf %s "${version#*-}" | tr - .)" ;; esac
	[ "$commits" = 0 ] || version="$version+$commits.$hash"
	;;
*)
	version="0.0.0+$(git rev-list --count HEAD).g$plain"
	;;
esac
if [ "$described" != "$plain" ]; then
	case $version in *+*) version="$version.dirty" ;; *) version="$version+dirty" ;; esac
fi
printf '%s\n' "$version"
