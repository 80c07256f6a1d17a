package version

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestNormaliseName(t *testing.T) {
	for in, want := range map[string]string{
		"v2": "v2", "V2-Demo": "v2-demo", "Sei v6.3.0": "sei v6.3.0", "a~b:c@d": "a~b:c@d", "v2.": "v2.", "genesis": "genesis",
		strings.Repeat("X", 255): strings.Repeat("x", 255),
	} {
		got, err := NormaliseName(in, true)
		require.NoError(t, err, in)
		assert.Equal(t, want, got)
		got, err = NormaliseName(in, false)
		require.NoError(t, err, in)
		assert.Equal(t, in, got, "without recase the name stays as it is")
	}
	for what, in := range map[string]string{
		"empty": "", "dot": ".", "dots": "..", "hidden": ".stage", "up": "../../evil", "absolute": "/abs", "inner slash": "a/b",
		"backslash": `a\b`, "NUL": "a\x00b", "newline": "a\nb", "tab": "a\tb", "DEL": "a\x7fb", "escaped dots": "%2e%2e", "percent": "a%b",
		"leading blank": " v2", "trailing blank": "v2 ", "256 bytes": strings.Repeat("x", 256),
		"255 bytes only before escaping": strings.Repeat("x", 253) + " y", "cyrillic": "v\u0435rsion", "full width": "\uff56\uff12",
		"Kelvin sign, which lower-cases to k": "\u212aava", "dotted I": "\u0130con", "no UTF-8": "v\xff2", "joiner": "v\u200d2",
	} {
		for _, recase := range []bool{true, false} {
			_, err := NormaliseName(in, recase)
			require.ErrorIs(t, err, ErrInvalidName, "%s: %q", what, in)
			assert.NotEmpty(t, hint.Of(err))
			assert.Less(t, len(err.Error()), 200, "a hostile name fills no log")
		}
	}
}

func FuzzNormaliseName(f *testing.F) {
	for _, name := range []string{"v2", "V2 x", "..", "a/../b", "\u212a", "%2e", "a\x00"} {
		f.Add(name, true)
	}
	f.Fuzz(func(t *testing.T, name string, recase bool) {
		got, err := NormaliseName(name, recase)
		if err != nil {
			return
		}
		requireInside(t, got)
		again, err := NormaliseName(got, recase)
		require.NoError(t, err)
		require.Equal(t, got, again)
		require.Equal(t, got, Of(got).Name())
	})
}

func requireInside(t *testing.T, name string) {
	t.Helper()
	l := layoutOf("/home")
	dir := l.Dir(Of(name))
	require.Equal(t, filepath.Join(l.Root, "upgrades"), filepath.Dir(dir))
	require.LessOrEqual(t, len(filepath.Base(dir)), 255)
	require.True(t, filepath.IsLocal(string(Of(name))))
}
