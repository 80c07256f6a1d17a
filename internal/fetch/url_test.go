package fetch

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestParseChecksum(t *testing.T) {
	a64, b128 := strings.Repeat("a1", 32), strings.Repeat("b2", 64)
	for raw, want := range map[string][3]string{
		"https://h/simd?checksum=sha256:" + a64:                            {"sha256", a64, "https://h/simd"},
		"https://h/simd?checksum=sha512:" + b128:                           {"sha512", b128, "https://h/simd"},
		"https://h/simd?checksum=sha256:" + strings.ToUpper(a64):           {"sha256", a64, "https://h/simd"},
		"https://h/simd?checksum=sha256%3A" + a64:                          {"sha256", a64, "https://h/simd"},
		"  https://h/simd?checksum=sha256:" + a64 + "\n":                   {"sha256", a64, "https://h/simd"},
		"https://h/s.zip?archive=zip&checksum=sha256:" + a64:               {"sha256", a64, "https://h/s.zip"},
		"https://h/s?z=%2f&checksum=sha256:" + a64 + "&a=1&Signature=x%2B": {"sha256", a64, "https://h/s?z=%2f&a=1&Signature=x%2B"},
		"https://me:pw@h:8443/s?checksum=sha256:" + a64:                    {"sha256", a64, "https://me:pw@h:8443/s"},
	} {
		algo, sum, clean, err := ParseChecksum(raw)
		require.NoError(t, err, raw)
		assert.Equal(t, want, [3]string{algo, sum, clean}, raw)
	}
}

func TestParseChecksumRefuses(t *testing.T) {
	a64 := strings.Repeat("a1", 32)
	for raw, reason := range map[string]string{
		"https://h/simd":                                                    "missing checksum",
		"https://h/simd?Checksum=sha256:" + a64:                             "missing checksum",
		"https://h/simd#checksum=sha256:" + a64:                             "missing checksum",
		"https://h/simd?checksum=":                                          "want sha256 or sha512",
		"https://h/simd?checksum=" + a64:                                    "want sha256 or sha512",
		"https://h/simd?checksum=md5:d41d8cd98f00b204e9800998ecf8427e":      "want sha256 or sha512",
		"https://h/simd?checksum=sha1:" + a64[:40]:                          "want sha256 or sha512",
		"https://h/simd?checksum=SHA256:" + a64:                             "want sha256 or sha512",
		"https://h/simd?checksum=file:https://h/sums.txt":                   "want sha256 or sha512",
		"https://h/simd?checksum=sha256:":                                   "64 hexadecimal",
		"https://h/simd?checksum=sha256:" + a64[:62]:                        "64 hexadecimal",
		"https://h/simd?checksum=sha256:" + a64 + "00":                      "64 hexadecimal",
		"https://h/simd?checksum=sha256:" + a64[:63] + "g":                  "64 hexadecimal",
		"https://h/simd?checksum=sha256:%20" + a64[:63]:                     "64 hexadecimal",
		"https://h/simd?checksum=sha512:" + a64:                             "128 hexadecimal",
		"https://h/simd?checksum=sha256:" + a64 + "&checksum=sha256:" + a64: "more than one",
		"https://h/simd?checksum=sha256:%zz":                                "malformed",
		"https://h/%zz?checksum=sha256:" + a64:                              "not a URL",
	} {
		_, _, _, err := ParseChecksum(raw)
		require.ErrorContains(t, err, reason, raw)
		assert.Contains(t, hint.Of(err), "upgrade add", raw)
	}
}

func TestAllowedURL(t *testing.T) {
	for raw, ok := range map[string]bool{
		"https://example.com/a": true, "HTTPS://example.com/a": true,
		"http://127.0.0.1:80/a": true, "http://127.8.9.1/a": true, "http://[::1]/a": true, "http://localhost:1/a": true,
		"http://LocalHost/a": true, "http://[::ffff:127.0.0.1]/a": true,
		"http://example.com/a": false, "http://10.0.0.1/a": false, "http://0.0.0.0/a": false, "http://127.1/a": false,
		"http://localhost.example.com/a": false, "http://2130706433/a": false, "http:///a": false,
		"https:///a": false, "file:///etc/passwd": false, "file://localhost/etc/passwd": false, "/etc/passwd": false,
		"git::https://example.com/a": false, "s3::https://s3/a": false, "": false, "example.com/a": false,
	} {
		u, err := url.Parse(raw)
		require.NoError(t, err, raw)
		assert.Equal(t, ok, AllowedURL(u) == nil, raw)
	}
}

func TestRedact(t *testing.T) {
	for raw, want := range map[string]string{
		"https://me:pw@h/a?token=s#f": "https://h/a",
		"https://h/a?":                "https://h/a",
		"https://h/%zz?token=s":       "(malformed URL)",
		"mailto:secret":               "mailto:(opaque)",
	} {
		assert.Equal(t, want, Redact(raw))
	}
}
