package config

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot"
)

// roundTrip renders cfg, reads it back into the defaults, and wants the same.
func roundTrip(t *testing.T, cfg Config) string {
	t.Helper()
	text := RenderToml(cfg)
	again := Default()
	for _, p := range decodeToml("supervisor.toml", text, &again, map[string]string{}) {
		t.Error(p)
	}
	assert.Equal(t, cfg, again, text)
	return text
}

func TestTheDefaultsAreAllComments(t *testing.T) {
	text := roundTrip(t, Default())
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		assert.True(t, line == "" || line[0] == '#' || line[0] == '[', "not a comment: %s", line)
	}
	// A default that is uncommented must be a valid key with the default's value.
	var uncommented strings.Builder
	for line := range strings.Lines(text) {
		if key, _, ok := strings.Cut(strings.TrimPrefix(line, "# "), " = "); ok && !strings.Contains(key, " ") {
			line = strings.TrimPrefix(line, "# ")
		}
		uncommented.WriteString(line)
	}
	cfg := Default()
	origin := map[string]string{}
	require.Empty(t, decodeToml("supervisor.toml", uncommented.String(), &cfg, origin), uncommented.String())
	assert.Equal(t, Default().Upgrade, cfg.Upgrade)
	assert.Equal(t, Default().Log, cfg.Log)
	assert.Equal(t, Default().Node.StopTimeout, cfg.Node.StopTimeout)
	assert.Contains(t, origin, "node.backoff_limit")
}

func TestWhatDiffersIsWritten(t *testing.T) {
	cfg := Default()
	cfg.Node.Name, cfg.Node.Home = "simd", `/var/lib/a "b" \c`
	cfg.Node.Args, cfg.Node.Env = []string{"start", "--x=\n\t\x01é"}, map[string]string{"A.B": "1", "C": `"`, "": "x"}
	cfg.Node.StopTimeout = 2*time.Hour + 3*time.Millisecond
	cfg.Versions = map[string]Version{"v0.10": {Args: &[]string{}, Env: map[string]string{}}, "v 2": {}}
	cfg.Upgrade.Probe, cfg.Upgrade.Probation.Attempts, cfg.Upgrade.RestartAfter = []string{}, 7, false
	body := ""
	cfg.Height.Body = &body
	cfg.Snapshot.Sources = []snapshot.SourceConfig{{Name: "data", Kind: "dir", Path: "data", Exclude: []string{"*.tmp"}}, {Name: "b", Kind: "dir", Path: "/b", After: []string{"data"}}}
	cfg.Genesis.Set = map[string]any{"a": int64(1), "b": []any{1.0, true, "x"}, "c d": map[string]any{"e": 1e300}}
	cfg.Units = []Unit{{Name: "a.service", At: "before-stop", Action: "stop"}}
	text := roundTrip(t, cfg)
	for _, line := range []string{
		`home = "/var/lib/a \"b\" \\c"`, `args = ["start", "--x=\n\t\u0001é"]`, `env = {"" = "x", "A.B" = "1", C = "\""}`, `stop_timeout = "2h0m0.003s"`,
		`[version."v0.10"]`, `args = []`, `# poll = "300ms"`, `# delay = "0s"`, `# stop_signal = "SIGTERM"`, `probe = []`, `body = ""`,
		`[[snapshot.source]]`, `[upgrade.probation]`, `attempts = 7`, `restart_after = false`, `# backoff_max = "1m"`,
	} {
		assert.Regexp(t, `(?m)^`+quoteRegexp(line)+`( |$)`, text)
	}
}

func quoteRegexp(s string) string {
	return strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `.`, `\.`, `{`, `\{`, `}`, `\}`, `(`, `\(`, `+`, `\+`).Replace(s)
}

func TestEveryKeyIsExplained(t *testing.T) {
	docs, keys := keyDocs(), map[string]bool{}
	for _, key := range allKeys(reflectConfig(), "") {
		keys[key] = true
		if strings.Contains(key, ".") && key != "upgrade.probation" {
			assert.NotEmpty(t, docs[key], "%s has no explanation", key)
		}
	}
	for key := range docs {
		assert.True(t, keys[key], "%s is explained and is no key", key)
	}
}

func TestWhatInitWritesIsLoaded(t *testing.T) {
	home := newHome(t)
	cfg := Default()
	cfg.Node.Home, cfg.Node.Name = home, "simd"
	writeConfig(t, home, RenderToml(cfg))
	got, _, err := Load(Options{HomeFlag: home})
	require.NoError(t, err)
	assert.Equal(t, cfg, got)
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Minute: "1m", time.Hour: "1h", 10 * time.Second: "10s", 90 * time.Second: "1m30s", time.Hour + time.Second: "1h0m1s",
		100 * time.Minute: "1h40m", 20 * time.Hour: "20h", 300 * time.Millisecond: "300ms",
	} {
		assert.Equal(t, want, shortDuration(d))
		back, err := time.ParseDuration(shortDuration(d))
		require.NoError(t, err)
		assert.Equal(t, d, back)
	}
}
