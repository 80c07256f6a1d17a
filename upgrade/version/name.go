package version

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"nodevisor/internal/hint"
)

// maxNameBytes is a file name's limit on Linux (NAME_MAX), counted after escaping.
const maxNameBytes = 255

// ErrInvalidName means a name that could leave the tree of versions.
var ErrInvalidName = errors.New("invalid name")

// NormaliseName is the one place where a plan's name becomes the name of a version. With recase it is lower-cased, as
// Cosmovisor does. Allowed is printable ASCII without "/", "\" and "%", not starting with a dot, at most 255 bytes after
// URL path escaping: everything else could name a path outside the tree, or two versions by names that look the same.
func NormaliseName(name string, recase bool) (string, error) {
	bad := func(why string) (string, error) {
		return "", &hint.Error{
			Op: "use the name", Path: strconv.Quote(short(name)), Err: fmt.Errorf("%w: %s", ErrInvalidName, why),
			Hint: "a version's name is printable ASCII without / \\ % and does not start with a dot",
		}
	}
	switch {
	case name == "":
		return bad("it is empty")
	case name[0] == '.':
		return bad("it starts with a dot")
	case name != strings.TrimSpace(name):
		return bad("it starts or ends with white space")
	}
	for _, r := range name {
		switch {
		case r == '/' || r == '\\':
			return bad("it holds a path separator")
		case r == '%':
			return bad("it holds a %")
		case r < 0x20 || r > 0x7e:
			return bad("it holds a character that is not printable ASCII")
		}
	}
	if len(url.PathEscape(name)) > maxNameBytes {
		return bad("it is longer than 255 bytes")
	}
	if recase { // last: lower-casing makes ASCII of some look-alikes (the Kelvin sign becomes a k)
		name = strings.ToLower(name)
	}
	return name, nil
}

func short(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
