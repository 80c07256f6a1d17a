package fetch

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/progress"
)

func FuzzParseChecksum(f *testing.F) {
	f.Add("https://h/simd?checksum=sha256:" + strings.Repeat("a1", 32))
	f.Add("https://me:pw@h/simd?b=2&checksum=sha512:" + strings.Repeat("A1", 64) + "&archive=false&a=%31#f")
	f.Add("//@//me:secret@h/simd")
	f.Add(" ?checksum=sha256:" + strings.Repeat("a1", 32))
	f.Add("https://h/simd?a=1&checksum=md5:x;checksum=")
	f.Fuzz(func(t *testing.T, raw string) {
		if shown, err := url.Parse(Redact(raw)); err == nil {
			require.True(t, shown.User == nil && shown.RawQuery == "" && shown.Fragment == "", "a secret is shown of %q", raw)
		}
		algo, sum, clean, err := ParseChecksum(raw)
		if err != nil {
			return
		}
		h, err := newHash(algo)
		require.NoError(t, err)
		require.Len(t, sum, 2*h.Size())
		before, err := url.Parse(strings.TrimSpace(raw))
		require.NoError(t, err)
		after, err := url.Parse(clean)
		require.NoError(t, err)
		require.False(t, after.Query().Has("checksum"), clean)
		require.Equal(t, [...]string{before.Scheme, before.Host, before.EscapedPath()}, [...]string{after.Scheme, after.Host, after.EscapedPath()})
		require.Equal(t, AllowedURL(before) == nil, AllowedURL(after) == nil)
	})
}

// FuzzSelectBinary: what is selected is what a plain decoder, such as Cosmovisor's, finds under that key.
func FuzzSelectBinary(f *testing.F) {
	f.Add([]byte(`{"binaries":{"linux/amd64":"https://h/a?checksum=sha256:00","any":"https://h/b"}}`))
	f.Add([]byte(`{"binaries":{"any":"a"},"Binaries":{"any":"b"},"x":[1]}`))
	f.Add([]byte(`{"binaries":{"any":"a","any":"b"}}`))
	f.Add([]byte(`{"binaries":null}`))
	f.Fuzz(func(t *testing.T, info []byte) {
		got, err := SelectBinary(info, "linux", "amd64")
		if err != nil {
			return
		}
		var plain struct {
			Binaries map[string]string `json:"binaries"`
		}
		require.NoError(t, json.Unmarshal(info, &plain))
		want := plain.Binaries["linux/amd64"]
		if want == "" {
			want = plain.Binaries["any"]
		}
		require.NotEmpty(t, got)
		require.Equal(t, want, got)
	})
}

// FuzzLines: what the downloader says is understood alike in whatever pieces it comes, and little of it is kept.
func FuzzLines(f *testing.F) {
	f.Add([]byte(`{"done":1,"total":2}`+"\n"+`{"path":"/out/simd","bytes":2,"sha256":"00"}`+"\n"), 3)
	f.Add([]byte(`{"error":"refused","kind":"refused"}`+"\n"+`{"path":"/x"}`+"\n"), 1)
	f.Add([]byte("panic: \n"+strings.Repeat("x", 70)), 7)
	f.Fuzz(func(t *testing.T, said []byte, size int) {
		size = max(size, 1)
		var whole, pieces lines
		_, err := whole.Write(said)
		require.NoError(t, err)
		for rest := said; len(rest) > 0; {
			n := min(size, len(rest))
			_, err := pieces.Write(rest[:n])
			require.NoError(t, err)
			require.LessOrEqual(t, len(pieces.rest), maxLine+size)
			rest = rest[n:]
		}
		want, ok := whole.result()
		got, alike := pieces.result()
		require.Equal(t, ok, alike)
		if ok {
			require.Equal(t, want, got)
			require.True(t, got.Path != "" || got.Error != "")
			require.Equal(t, 1, bytes.Count(said, []byte("\n"))-len(progressOf(said)))
		}
	})
}

// progressOf are the reports of progress in what was said.
func progressOf(said []byte) (all []progress.Event) {
	l := lines{observe: func(e progress.Event) { all = append(all, e) }}
	_, _ = l.Write(said)
	return all
}
