package suggest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestClosest(t *testing.T) {
	words := []string{"name", "home", "stop_timeout", "stop_signal", "on"}
	for word, want := range map[string]string{
		"nmae": "name", "hme": "home", "HOME": "home", "stoptimeout": "stop_timeout", "stop-timeout": "stop_timeout", "timeout": "",
		"": "", "x": "", "completely_else": "", strings.Repeat("n", 1000): "", "in": "on",
	} {
		assert.Equal(t, want, Closest(word, words), word)
	}
}
