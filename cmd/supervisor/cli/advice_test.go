package cli

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What is printed names the home that this command line names, in every command of an advice, and in nothing else.
func TestAdviceNamesTheHome(t *testing.T) {
	t.Parallel()
	a := &App{Commands: []string{"resume", "run", "status", "upgrade"}}
	const plain = "supervisor resume, or: supervisor upgrade skip v2"
	assert.Equal(t, plain, a.Addressed(plain), "no flag was given")
	a.Flags.Home = "/a b"
	for text, want := range map[string]string{
		"supervisor status":                             "supervisor --home '/a b' status",
		"supervisor --takeover run start    # stops it": "supervisor --home '/a b' --takeover run start    # stops it",
		plain: "supervisor --home '/a b' resume, or: supervisor --home '/a b' upgrade skip v2",
		"no supervisor is running; the next one finds it so": "no supervisor is running; the next one finds it so",
		"supervisor --home /other doctor":                    "supervisor --home /other doctor",
		"look into /var/supervisor status files":             "look into /var/supervisor status files",
		"add --force":                                        "add --force",
	} {
		assert.Equal(t, want, a.Addressed(text))
		assert.Equal(t, want, a.Addressed(want), "done twice")
	}
	a.Flags.Config, a.Flags.Unit = "x.toml", "simd.service"
	assert.Equal(t, "supervisor --home '/a b' --config x.toml --unit simd.service run", a.Addressed("supervisor run"))
	var out bytes.Buffer
	log := a.Advising(slog.New(slog.NewTextHandler(&out, nil))).With("plan", "v2")
	log.Warn("not ready", "hint", "supervisor status")
	assert.Contains(t, out.String(), "plan=v2")
	assert.Contains(t, out.String(), "supervisor --home '/a b' --config x.toml --unit simd.service status")
}
