package cli

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestShellQuote(t *testing.T) {
	for text, want := range map[string]string{"/a/b-c": "/a/b-c", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "v3.0_1@x": "v3.0_1@x"} {
		assert.Equal(t, want, ShellQuote(text))
	}
}
