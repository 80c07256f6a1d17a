package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

// Every key of the configuration is found when it changes, by the path that the documentation gives it; and each is either
// taken over, left to the next start, or refused with its name.
func TestReloadKnowsEveryKey(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(v reflect.Value, path string, old, fresh *Config)
	walk = func(v reflect.Value, path string, old, fresh *Config) {
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				if name := v.Type().Field(i).Tag.Get("toml"); name != "" && name != "-" {
					walk(v.Field(i), join(path, name), old, fresh)
				}
			}
			return
		}
		was := reflect.New(v.Type()).Elem()
		was.Set(v)
		switch v.Kind() {
		case reflect.String:
			v.SetString("changed")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
		case reflect.Map:
			v.Set(reflect.MakeMap(v.Type()))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		default:
			t.Fatalf("%s: a kind that this test doesn't know: %s", path, v.Kind())
		}
		assert.Equal(t, []string{path}, changedKeys(*old, *fresh))
		seen++
		v.Set(was)
	}
	old, fresh := DefaultConfig(), DefaultConfig()
	walk(reflect.ValueOf(&fresh).Elem(), "", &old, &fresh)
	assert.Greater(t, seen, 50)
	assert.Empty(t, changedKeys(old, fresh))
}

func TestRefuseFixed(t *testing.T) {
	t.Parallel()
	taken := []string{"upgrade.delay", "upgrade.probation.up", "height.url", "snapshot.on", "snapshot.source", "control.group", "log.level", "metrics.listen", "notify.webhook", "security.allow_writable", "node.args", "version"}
	require.NoError(t, refuseFixed(taken, false))
	err := refuseFixed(taken, true)
	require.ErrorContains(t, err, "cannot reload [snapshot] on: can't change while an upgrade is in flight")
	assert.NotContains(t, err.Error(), "[upgrade]")
	for key, name := range map[string]string{
		"upgrade.plan_file": "[upgrade] plan_file", "upgrade.recase": "[upgrade] recase", "upgrade.poll": "[upgrade] poll",
		"height.log": "[height] log", "log.format": "[log] format", "control.socket": "[control] socket", "systemd.ready": "[systemd] ready",
		"unit": "unit", "genesis.kind": "[genesis] kind", "table.of.later": "[table.of] later",
	} {
		err := refuseFixed([]string{key}, false)
		require.ErrorContains(t, err, "cannot reload "+name+": can't change while run lives")
		assert.NotEmpty(t, hint.Of(err))
	}
}

// The level of the log changes for every logger that was made from it, and nothing else of it does.
func TestLevelChanges(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	for _, format := range []string{"text", "json"} {
		log, level := newLogger(LogConfig{Format: format, Level: "warn"}, CosmovisorConfig{}, file, nil)
		derived := log.With("plan", "v2")
		assert.False(t, derived.Enabled(context.Background(), slog.LevelInfo))
		level.Set(levelOf(LogConfig{Level: "debug"}, CosmovisorConfig{}))
		derived.Debug("now it is said")
		level.Set(levelOf(LogConfig{Level: "debug"}, CosmovisorConfig{DisableLogs: true}))
		derived.Warn("and now not")
	}
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	assert.Equal(t, 2, bytes.Count(text, []byte("now it is said")), string(text))
	assert.NotContains(t, string(text), "and now not")
	assert.Equal(t, 2, strings.Count(string(text), "\n"))
}
