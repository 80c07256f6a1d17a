package fetch

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"net/netip"
	"net/url"
	"strings"

	"nodevisor/internal/hint"
)

// byHand is the way out of every download that can't be made: a binary that is already in place is never downloaded.
const byHand = "place the binary by hand: supervisor upgrade add NAME BINARY"

// newHash gives the hash of an accepted algorithm. go-getter also knows md5, sha1 and `file:` (a list of digests from the
// same server): the first two are broken, the third proves nothing.
func newHash(algo string) (hash.Hash, error) {
	switch algo {
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	}
	return nil, fmt.Errorf("checksum of type %q, want sha256 or sha512", algo)
}

// ParseChecksum splits a plan's URL (`https://…?checksum=sha256:HEX`, as go-getter and so Cosmovisor take it) into the
// algorithm ("sha256" or "sha512"), the digest in lower-case hexadecimal, and the URL to ask the server for. The digest is
// that of the file the server sends: of the archive, where it is one. The other parameters keep their order and spelling,
// because signed URLs depend on them; `archive` goes too, it was meant for go-getter, and archives are known by their content.
//
// Anything but exactly one such digest is a *hint.Error.
func ParseChecksum(rawURL string) (algo, hexsum, cleanURL string, err error) {
	refuse := func(why string) (string, string, string, error) {
		return "", "", "", hint.New("accept download URL", Redact(rawURL), why,
			"the URL must carry ?checksum=sha256:HEX or sha512:HEX; else "+byHand)
	}
	u, err := url.Parse(strings.TrimSpace(rawURL))
	if err != nil {
		return refuse("not a URL")
	}
	var sums, rest []string
	for _, pair := range strings.Split(u.RawQuery, "&") {
		key, value, _ := strings.Cut(pair, "=")
		name, errName := url.QueryUnescape(key)
		text, errText := url.QueryUnescape(value)
		switch {
		case errName != nil || errText != nil:
			return refuse("malformed query")
		case name == "checksum":
			sums = append(sums, text)
		case name != "archive" && pair != "":
			rest = append(rest, pair)
		}
	}
	switch len(sums) {
	case 0:
		return refuse("missing checksum query parameter")
	case 1:
	default:
		return refuse("more than one checksum")
	}
	algo, hexsum, _ = strings.Cut(sums[0], ":")
	h, err := newHash(algo)
	if err != nil {
		return refuse(err.Error())
	}
	if digest, err := hex.DecodeString(hexsum); err != nil || len(digest) != h.Size() {
		return refuse(fmt.Sprintf("a %s checksum is %d hexadecimal characters", algo, 2*h.Size()))
	}
	u.RawQuery = strings.Join(rest, "&")
	return algo, strings.ToLower(hexsum), u.String(), nil
}

// AllowedURL says whether a request may be made to u: over https, or over http to a loopback address, where nobody
// listens in. The downloader asks it for the first request and again for each redirect.
func AllowedURL(u *url.URL) error {
	switch {
	case u.Hostname() == "":
		return fmt.Errorf("%q has no host", Redact(u.String()))
	case strings.EqualFold(u.Scheme, "https"):
		return nil
	case strings.EqualFold(u.Scheme, "http"):
		if Loopback(u.Hostname()) {
			return nil
		}
		return fmt.Errorf("plain http to %s: only https is allowed", u.Hostname())
	}
	return fmt.Errorf("scheme %q: only https is allowed", u.Scheme)
}

// Loopback says whether host is this machine: "localhost" or a loopback address. A name may lie, so the downloader
// checks the address again when it connects.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Redact renders a URL for logs and errors: without user, password, query and fragment, any of which may hold a secret.
func Redact(rawURL string) string {
	u, err := url.Parse(strings.TrimSpace(rawURL))
	if err != nil {
		return "(malformed URL)"
	}
	u.User, u.RawQuery, u.Fragment, u.ForceQuery = nil, "", "", false
	if u.Opaque != "" {
		return u.Scheme + ":(opaque)"
	}
	text := u.String()
	if again, err := url.Parse(text); err != nil || again.User != nil { // a path of "//me:secret@host", without its host
		return "(malformed URL)"
	}
	return text
}
