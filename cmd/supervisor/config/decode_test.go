package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func reflectConfig() reflect.Type { return reflect.TypeFor[Config]() }
func mkfifo(path string) error    { return syscall.Mkfifo(path, 0o600) }

func TestKeyPositions(t *testing.T) {
	text := "# [comment]\n" +
		"top = 1\n" +
		"[node] # name = 1\n" +
		"  name = \"a#b\" # c\n" +
		"args = [ # [x]\n  \"]\", 'it\\',\n]\n" +
		"text = \"\"\"\n[no]\nkey = 1 \\\"\"\"\"\"\n" +
		"raw = '''\n[no]\n'''\n" +
		"a.\"b.c\".d = { x = 1, y = [2] }\n" +
		"[version.\"v0.10\"]\nargs=[]\n" +
		"[[unit]]\nname = 'ä'\n[[ unit ]]\nname='2'\n" +
		"[[snapshot.source]]\nkind = 1\n"
	var parsed map[string]any
	_, err := toml.Decode(text, &parsed)
	require.NoError(t, err, "the test's document must be TOML")
	found, depth := keyPositions(text)
	assert.Equal(t, 2, depth)
	assert.Equal(t, map[string]position{
		"top": {2, 1}, "node": {3, 1}, "node.name": {4, 3}, "node.args": {5, 1}, "node.text": {8, 1}, "node.raw": {11, 1},
		"node.a": {14, 1}, "node.a.b.c": {14, 1}, "node.a.b.c.d": {14, 1},
		"version": {15, 1}, "version.v0.10": {15, 1}, "version.v0.10.args": {16, 1},
		"unit[0]": {17, 1}, "unit[0].name": {18, 1}, "unit[1]": {19, 1}, "unit[1].name": {20, 1},
		"snapshot": {21, 1}, "snapshot.source[0]": {21, 1}, "snapshot.source[0].kind": {22, 1},
	}, found)
	p, ok := positionOf(found, "node.args[1]")
	assert.True(t, ok)
	assert.Equal(t, position{5, 1}, p, "what lies within a value has the value's place")
	_, ok = positionOf(found, "none.at.all")
	assert.False(t, ok)
}

func TestPositionsOfALargeFileAreCheap(t *testing.T) {
	text := strings.Repeat("[[unit]]\nname = 'x'\n", maxConfigSize/20)
	began := time.Now()
	found, _ := keyPositions(text)
	assert.Len(t, found, 2*(maxConfigSize/20))
	assert.Less(t, time.Since(began), 20*time.Second, "quadratic")
}

func TestDecodeTypes(t *testing.T) {
	for text, want := range map[string]string{
		`node = 1`:                                "f:1:1: node must be a table, not 1",
		`node = []`:                               "f:1:1: node must be a table, not a list",
		"[node]\nname = 1979-05-27":               "f:2:1: node.name must be a string, not a date or time",
		"[node]\nbackoff = '1 minute'":            `f:2:1: node.backoff must be a duration with its unit, such as "30s", not "1 minute"`,
		"[node]\nbackoff_limit = 1.5":             "f:2:1: node.backoff_limit must be a whole number, not 1.5",
		"[node]\nenv = []":                        "f:2:1: node.env must be a table, not a list",
		"[node]\nname = \"a\\u0000b\"":            "f:2:1: node.name must not contain a NUL",
		"[upgrade]\nrecase = 'true'":              `f:2:1: upgrade.recase must be true or false, not the string "true"`,
		"[upgrade.probation]\nup = {}":            `f:2:1: upgrade.probation.up must be a duration with its unit, such as "30s", not a table`,
		"[unit]\nname = 'x'":                      "f:1:1: unit must be a list, not a table",
		"unit = [1]":                              "f:1:1: unit[0] must be a table, not 1",
		"[version]\nv2 = 1":                       "f:2:1: version.v2 must be a table, not 1",
		"[genesis]\nset = 1":                      "f:2:1: genesis.set must be a table, not 1",
		"[Node]":                                  `f:1:1: unknown key "Node" (did you mean "node"?)`,
		"[security]\nallow-writable = []":         `f:2:1: unknown key "allow-writable" in [security] (did you mean "allow_writable"?)`,
		"[[snapshot.source]]\nkind='dir'\npth=''": `f:3:1: unknown key "pth" in [snapshot.source[0]] (did you mean "path"?)`,
		"zzz = 1":                                 `f:1:1: unknown key "zzz"`,
	} {
		cfg := Default()
		problems := decodeToml("f", text, &cfg, map[string]string{})
		if assert.Len(t, problems, 1, text) {
			assert.EqualError(t, problems[0], want, text)
		}
	}
	cfg := Default()
	require.Empty(t, decodeToml("f", "unit = [{name='a.service'}]\n[genesis]\nset = {a = [1, {b = 2}]}\n[node.env]\nA='1'\n[height]\nbody=''", &cfg, map[string]string{}))
	assert.Equal(t, []Unit{{Name: "a.service"}}, cfg.Units)
	assert.Equal(t, map[string]string{"A": "1"}, cfg.Node.Env)
	assert.NotNil(t, cfg.Height.Body)
}

func TestARightKeyInTheWrongTable(t *testing.T) {
	assert.Equal(t, ` (did you mean "delay" in [upgrade]?)`, suggestKey("node", "delay", []string{"node.name", "upgrade.delay"}))
}

// FuzzDecode: whatever a file holds, decoding ends, names a place for each mistake, and what it accepts survives being
// written and read again.
func FuzzDecode(f *testing.F) {
	f.Add(exampleToml)
	f.Add(postgresToml)
	f.Add("[node]\nname = \"\"\"\n[[\"\\")
	f.Add("a.b.'c' = [[{x=1}]]\n[a]\n[[b]]\n[[b]]\n[b.c]\n= ]")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		keyPositions(text)
		cfg := Default()
		for _, p := range decodeToml("file", text, &cfg, map[string]string{}) {
			assert.True(t, strings.HasPrefix(p.Error(), "file:"), p.Error())
			return
		}
		again := Default()
		rendered := RenderToml(cfg)
		require.Empty(t, decodeToml("file", rendered, &again, map[string]string{}), rendered)
		assert.Equal(t, rendered, RenderToml(again))
	})
}

// FuzzEnvironment: a variable sets its key as the file does, or both refuse the value, and nothing else is set.
func FuzzEnvironment(f *testing.F) {
	f.Add("SUPERVISOR_NODE_STOP_TIMEOUT", "3m")
	f.Add("SUPERVISOR_UPGRADE_RECASE", "TRUE")
	f.Add("SUPERVISOR_NODE_BACKOFF_LIMIT", "+07")
	f.Add("SUPERVISOR_SNAPSHOT_DIR", "/a\x00\"\\b\n")
	f.Add("SUPERVISOR_HEIGHT_BODY", " ")
	f.Add("DAEMON_SHUTDOWN_GRACE", "-1s")
	f.Add("UNSAFE_SKIP_BACKUP", "tRuE")
	f.Fuzz(func(t *testing.T, name, value string) {
		if !utf8.ValidString(value) {
			return // no TOML document holds it
		}
		l := &loader{cfg: Default(), origin: Origin{Keys: map[string]string{}}, env: map[string]string{name: value}}
		l.applySupervisorEnv()
		l.applyDaemonEnv()
		if len(l.problems) > 0 {
			return
		}
		again := Default()
		rendered := RenderToml(l.cfg)
		require.Empty(t, decodeToml("file", rendered, &again, map[string]string{}), rendered)
		require.Equal(t, rendered, RenderToml(again))
		if len(l.origin.Keys) == 0 && strings.HasPrefix(name, "SUPERVISOR_") {
			require.Equal(t, RenderToml(Default()), rendered, "%s=%q", name, value)
		}
	})
}

// FuzzCosmovisorFile: whatever Cosmovisor's own file holds, reading it ends, and its values are read as variables are.
func FuzzCosmovisorFile(f *testing.F) {
	f.Add("daemon_home = \"/h\"\ndaemon_name = 'simd'\ndaemon_shutdown_grace = 5000000000\nunsafe_skip_backup = 'true'\n")
	f.Add("DAEMON_RESTART_DELAY = '0s'\ndaemon_poll_interval = [1]\ndaemon_nme = 1\n")
	path := filepath.Join(f.TempDir(), "config.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		file := &loader{cfg: Default(), origin: Origin{Keys: map[string]string{}}, env: map[string]string{}}
		file.readCosmovisor(path)
		if len(file.problems) > 0 {
			return
		}
		variables := &loader{cfg: Default(), origin: Origin{Keys: map[string]string{}}, env: map[string]string{}}
		for name, v := range file.legacy {
			variables.env[name] = v.text
		}
		file.applyDaemonEnv()
		variables.applyDaemonEnv()
		require.Equal(t, len(variables.problems), len(file.problems))
		require.Equal(t, RenderToml(variables.cfg), RenderToml(file.cfg))
	})
}

// The order of the document is the order of the mistakes, whatever Go's maps do.
func TestMistakesComeInOrder(t *testing.T) {
	text := "z = 1\n[log]\nb = 1\na = 1\n[[unit]]\nx = 1\n[[unit]]\ny = 1\n[aa]\n[upgrade.probation]\nx = 1\n[node]\nx = 1\n[upgrade]\nx = 1"
	for range 20 {
		cfg := Default()
		var got []string
		for _, p := range decodeToml("f", text, &cfg, map[string]string{}) {
			got = append(got, strings.Fields(p.Error())[0])
		}
		require.Equal(t, []string{"f:1:1:", "f:3:1:", "f:4:1:", "f:6:1:", "f:8:1:", "f:9:1:", "f:11:1:", "f:13:1:", "f:15:1:"}, got)
	}
}

// A wrong type must not leave half a value behind in what `doctor` goes on with.
func TestAMistakeLeavesTheOtherKeysAlone(t *testing.T) {
	cfg := Default()
	origin := map[string]string{}
	problems := decodeToml("f", "[upgrade]\npoll = 5\ndelay = '7s'\nprobe = ['a']\n[snapshot]\nkeep = 'x'\n", &cfg, origin)
	require.Len(t, problems, 2)
	want := Default()
	want.Upgrade.Delay, want.Upgrade.Probe = 7*time.Second, []string{"a"}
	assert.Equal(t, want, cfg)
	assert.NotContains(t, origin, "upgrade.poll")
	assert.Equal(t, "f:3:1", origin["upgrade.delay"])
}

func TestAConfigErrorUnwraps(t *testing.T) {
	cause := errors.New("cause")
	err := error(&Error{Problems: []error{&Problem{At: "x", Err: errors.New("other")}, &Problem{Err: cause, Hint: "do it"}}})
	require.ErrorIs(t, err, cause)
	assert.Equal(t, "do it", hint.Of(err))
	assert.Equal(t, "x: other\ncause", err.Error())
}
