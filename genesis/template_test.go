package genesis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const exported = `{"app_state":{"bank":{"supply":"1"}},"chain_id":"c-1","consensus":{},"genesis_time":"2026-01-01T00:00:00Z","initial_height":8}`

// script makes a program of a few lines of shell, which every host has.
func script(t *testing.T, body string) Program {
	t.Helper()
	path := filepath.Join(t.TempDir(), "noded")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755))
	return Program{Path: path, Env: []string{"PATH=" + os.Getenv("PATH")}}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestExtractFindsTheOneDocument(t *testing.T) {
	pretty := string(doc(t, exported).Text())
	for name, output := range map[string]string{
		"alone":                 exported,
		"pretty":                pretty,
		"logs around":           "9:00AM INF opening {db=1}\n" + pretty + "9:01AM INF closed {\n",
		"JSON logs around":      `{"level":"info","app_state":"exporting"}` + "\n" + exported + "\n" + `{"level":"info"}` + "\n",
		"no line break before":  "9:00AM INF done" + exported + "\n",
		"an unended one before": "{\"level\":\n" + exported,
		"its like in a string":  exported + "\n" + `{"message":"{\"app_state\":{}}"}`,
		"blanks at the line":    "  \t" + exported,
		"carriage returns":      "INF x\r\n" + exported + "\r\n",
		"brackets in log lines": strings.Repeat("INF {a={b={c=\n", 1000) + exported,
	} {
		d, err := extract([]byte(output))
		if assert.NoError(t, err, name) {
			assert.Equal(t, doc(t, exported).Hash(), d.Hash(), name)
		}
	}
	for name, output := range map[string]string{
		"nothing": "", "logs alone": "INF x\n{\"level\":\"info\"}\n", "cut": exported[:len(exported)-3], "two": exported + "\n" + exported,
		"state is no object": `{"app_state":null}`, "a key twice": `{"app_state":{"a":1,"a":2}}`,
	} {
		_, err := extract([]byte(output))
		assert.Error(t, err, name)
	}
}

func TestSDKExport(t *testing.T) {
	const validate = `genesis) [ "$2" = validate ] || { echo "Error: unknown command" >&2; exit 1; }; grep -q bank "$3" || { echo "Error: no bank" >&2; exit 1; };;`
	const known = `case $1 in
export) if [ "$2" = --help ]; then echo usage; exit 0; fi
  echo "INF exporting"; echo '` + exported + `'; echo "INF done";;
` + validate + `
*) echo "Error: unknown command" >&2; exit 1;; esac`
	toFile := strings.Replace(known, "echo usage", "echo '--output-document string'", 1)
	toFile = strings.Replace(toFile, `echo '`+exported+`'`, `eval "out=\${$#}"; echo '`+exported+`' >"$out"; echo '{"app_state":{"from":"stdout"}}'`, 1)
	toStderr := strings.Replace(known, `echo '`+exported+`'`, `echo '`+exported+`' >&2`, 1)
	older := strings.Replace(known, validate, `validate-genesis) test -s "$2" || exit 1;;`, 1)

	for name, body := range map[string]string{"stdout": known, "file": toFile, "stderr": toStderr, "validate-genesis": older} {
		p := script(t, body)
		sdk := SDK{Old: p, New: p, Home: "/nowhere", Timeout: time.Minute, Log: quiet()}
		d, defaults, err := sdk.Make(t.Context(), t.TempDir(), func(d *Document) error { return d.Set("chain_id", "c-2") })
		require.NoError(t, err, name)
		assert.Equal(t, strings.Replace(exported, "c-1", "c-2", 1), string(d.Canonical()), name)
		assert.Equal(t, []string{`genesis_time: "2026-01-01T00:00:00Z", as it was exported`, `initial_height: 8, as it was exported`}, defaults, name)
	}

	without := script(t, strings.Replace(known, validate, "", 1))
	sdk := SDK{Old: without, New: without, Timeout: time.Minute, Log: quiet()}
	_, defaults, err := sdk.Make(t.Context(), t.TempDir(), func(*Document) error { return nil })
	require.NoError(t, err)
	assert.Contains(t, strings.Join(defaults, "\n"), "validate: the new binary has no such command")

	// The new version refuses what it can't start from.
	sdk = SDK{Old: script(t, known), New: script(t, known), Timeout: time.Minute, Log: quiet()}
	_, _, err = sdk.Make(t.Context(), t.TempDir(), func(d *Document) error { return d.Set("app_state", "{}") })
	require.ErrorContains(t, err, "no bank")
	// Shape before the program's opinion.
	_, _, err = sdk.Make(t.Context(), t.TempDir(), func(d *Document) error { return d.Set("genesis_time", "never") })
	require.ErrorContains(t, err, "genesis_time")
}

func TestSDKMigrate(t *testing.T) {
	old := script(t, `[ "$2" = --help ] || echo '`+exported+`'`)
	fresh := script(t, `case "$1 $2" in
"genesis migrate") sed 's/bank/vault/' "$4"; echo "INF migrated to $3 for $6";;
"genesis validate") exit 0;; esac`)
	sdk := SDK{Old: old, New: fresh, Migrate: "v1", Timeout: time.Minute, Log: quiet()}
	d, _, err := sdk.Make(t.Context(), t.TempDir(), func(*Document) error { return nil })
	require.NoError(t, err)
	assert.Equal(t, strings.Replace(exported, "bank", "vault", 1), string(d.Canonical()))

	sdk.New = script(t, `echo "Error: unknown command" >&2; exit 1`)
	_, _, err = sdk.Make(t.Context(), t.TempDir(), func(*Document) error { return nil })
	require.ErrorContains(t, err, "no command migrate")
}

func TestProgramsThatFailSaySo(t *testing.T) {
	failing := script(t, `echo "Error: resource temporarily unavailable" >&2; exit 1`)
	_, _, err := SDK{Old: failing, New: failing, Timeout: time.Minute, Log: quiet()}.Make(t.Context(), t.TempDir(), nil)
	require.ErrorContains(t, err, "resource temporarily unavailable")

	hanging := script(t, `[ "$2" = --help ] || sleep 600`)
	began := time.Now()
	_, _, err = SDK{Old: hanging, New: hanging, Timeout: 300 * time.Millisecond, Log: quiet()}.Make(t.Context(), t.TempDir(), nil)
	require.ErrorContains(t, err, "not done within 300ms")
	assert.Less(t, time.Since(began), 30*time.Second)
}

func TestCommand(t *testing.T) {
	d, err := script(t, `echo '{"a":1}'`).Make(t.Context(), t.TempDir(), time.Minute)
	require.NoError(t, err)
	assert.JSONEq(t, `{"a":1}`, string(d.Canonical()))
	d, err = script(t, `echo noise; echo "{\"h\":$HEIGHT}" >"$SUPERVISOR_GENESIS_OUT"`).Make(t.Context(), t.TempDir(), time.Minute, "HEIGHT=12")
	require.NoError(t, err)
	assert.JSONEq(t, `{"h":12}`, string(d.Canonical()))
	for _, body := range []string{`echo noise; echo '{}'`, `exit 3`, `true`, `: >"$SUPERVISOR_GENESIS_OUT"`} {
		_, err := script(t, body).Make(t.Context(), t.TempDir(), time.Minute)
		require.ErrorContains(t, err, "cannot make a document", body)
	}
}

func fillWith(text string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, DocumentName), []byte(text), 0o644)
	}
}

func TestBuildATemplate(t *testing.T) {
	dir := PathOf(filepath.Join(t.TempDir(), "snapshots"), "20261122T010203Z-halt-k3f9")
	id := "20261122T010203Z-halt-k3f9"
	require.NoError(t, Build(t.Context(), dir, &Template{Kind: Command, Snapshot: &id}, fillWith(`{"chain_id":"x"}`)))
	read, err := ReadTemplate(dir)
	require.NoError(t, err)
	assert.Equal(t, "x", read.ChainID)
	assert.Equal(t, id, *read.Snapshot)
	assert.Equal(t, doc(t, `{"chain_id":"x"}`).Hash(), read.Canonical)
	require.NoError(t, read.Verify(dir))
	for _, name := range []string{DocumentName, SumsName, ManifestName} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), name)
	}
	check := exec.Command("sha256sum", "-c", SumsName)
	check.Dir = dir
	out, err := check.CombinedOutput()
	require.NoError(t, err, string(out))

	// A failed one leaves the one of before, and nothing else.
	broken := errors.New("broken")
	for _, fill := range []func(context.Context, string) error{
		func(_ context.Context, at string) error { return errors.Join(fillWith("{}")(nil, at), broken) },
		fillWith(`{"chain_id":`),
		func(context.Context, string) error { return nil },
	} {
		require.Error(t, Build(t.Context(), dir, &Template{Kind: Command}, fill))
		again, err := ReadTemplate(dir)
		require.NoError(t, err)
		assert.Equal(t, read, again)
	}
	// A new one replaces it.
	require.NoError(t, Build(t.Context(), dir, &Template{Kind: Command}, fillWith(`{"chain_id":"y"}`)))
	read, err = ReadTemplate(dir)
	require.NoError(t, err)
	assert.Equal(t, "y", read.ChainID)
	entries, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, entries, 1)

	// What changed afterwards is noticed.
	write(t, filepath.Join(dir, DocumentName), `{"chain_id":"z"}`)
	require.ErrorContains(t, read.Verify(dir), "sha256: want")
	write(t, filepath.Join(dir, ManifestName), `{"schema":2}`)
	_, err = ReadTemplate(dir)
	require.ErrorContains(t, err, "schema 2")
}

func TestBuildNeverReplacesSomethingElse(t *testing.T) {
	dir := t.TempDir()
	precious := write(t, filepath.Join(dir, "precious"), "x")
	require.ErrorContains(t, Build(t.Context(), dir, &Template{}, fillWith("{}")), "no template")
	assert.FileExists(t, precious)
	_, err := ReadTemplate(dir)
	require.ErrorIs(t, err, fs.ErrNotExist)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	empty := filepath.Join(t.TempDir(), "empty")
	require.ErrorIs(t, Build(ctx, empty, &Template{}, fillWith("{}")), context.Canceled)
	assert.NoDirExists(t, empty)
}

func TestSweepTakesTemplatesWhoseSnapshotIsGone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "a.genesis", "a.genesis.partial", "b.genesis", "b.genesis.partial", "c.partial", "other", ".genesis"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	write(t, filepath.Join(dir, "file.genesis"), "")
	require.NoError(t, Sweep(dir))
	var left []string
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	assert.Equal(t, []string{".genesis", "a", "a.genesis", "a.genesis.partial", "c.partial", "file.genesis", "other"}, left)
	require.NoError(t, Sweep(filepath.Join(dir, "none")))
}

// Killed at any moment: what is there is the old template or the new one, whole.
func TestKilledWhileBuilding(t *testing.T) {
	if dir := os.Getenv("GENESIS_TEST_BUILD"); dir != "" {
		for i := 0; ; i++ {
			if err := Build(context.Background(), dir, &Template{Kind: Command}, fillWith(fmt.Sprintf(`{"chain_id":"x","n":%d}`, i))); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "x.genesis")
	for n := range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileBuilding$")
		cmd.Env = append(os.Environ(), "GENESIS_TEST_BUILD="+dir)
		require.NoError(t, cmd.Start())
		deadline := time.Now().Add(time.Minute)
		for { // at least one is finished
			if _, err := os.Stat(filepath.Join(dir, ManifestName)); err == nil {
				break
			}
			require.True(t, time.Now().Before(deadline), "no template was made")
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(n) * 700 * time.Microsecond) // another moment each time
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		read, err := ReadTemplate(dir)
		require.NoError(t, err)
		require.NoError(t, read.Verify(dir))
	}
	require.NoError(t, Build(t.Context(), dir, &Template{Kind: Command}, fillWith(`{}`)))
	entries, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing is left")
}
