package version

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// settled waits until the binary is old enough for its verification to be remembered.
func (h *home) settled(v Version) {
	h.t.Helper()
	info, err := os.Stat(h.l.Binary(v))
	require.NoError(h.t, err)
	within(h.t, 20*time.Second, func() bool { return time.Since(time.Unix(0, identify(info).ctime)) > clockTick })
}

// selfELF copies the test's own binary, changed by edit, to the version's place.
func (h *home) selfELF(edit func(data []byte)) {
	h.t.Helper()
	self, err := os.Executable()
	require.NoError(h.t, err)
	data, err := os.ReadFile(self)
	require.NoError(h.t, err)
	edit(data)
	h.write(h.l.Binary(staged), string(data))
	require.NoError(h.t, os.Chmod(h.l.Binary(staged), 0o755))
}

// smallELF is a header of an executable for this machine with one program header that names a dynamic loader.
func smallELF(t testing.TB, kind elf.Type, loader string) []byte {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	f, err := elf.Open(self)
	require.NoError(t, err)
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		t.Fatal("this test knows 64-bit little-endian machines")
	}
	le := binary.LittleEndian
	data := make([]byte, 0x78)
	copy(data, "\x7fELF\x02\x01\x01")
	le.PutUint16(data[0x10:], uint16(kind))
	le.PutUint16(data[0x12:], uint16(f.Machine))
	le.PutUint32(data[0x14:], 1)
	le.PutUint64(data[0x20:], 0x40) // program headers
	le.PutUint16(data[0x34:], 0x40)
	le.PutUint16(data[0x36:], 0x38)
	le.PutUint16(data[0x38:], 1)
	le.PutUint16(data[0x3a:], 0x40)
	le.PutUint32(data[0x40:], uint32(elf.PT_INTERP))
	le.PutUint64(data[0x48:], uint64(len(data)))
	le.PutUint64(data[0x60:], uint64(len(loader)+1))
	return append(data, loader+"\x00"...)
}

func TestCheckFindsWhatWouldFailAtTheHalt(t *testing.T) {
	put := func(text string) func(h *home) { return func(h *home) { h.write(h.l.Binary(staged), text) } }
	for name, c := range map[string]struct {
		make func(h *home)
		want string
	}{
		"missing":            {func(*home) {}, "no such file"},
		"directory alone":    {func(h *home) { require.NoError(h.t, os.MkdirAll(h.l.Dir(staged), 0o755)) }, "no such file"},
		"empty":              {put(""), "is empty"},
		"a directory":        {func(h *home) { require.NoError(h.t, os.MkdirAll(h.l.Binary(staged), 0o755)) }, "not a regular file"},
		"a dangling link":    {func(h *home) { h.link(h.l.Binary(staged), "/nonexistent/simd") }, "no such file"},
		"text":               {put("hello, world"), "neither an ELF executable nor a script"},
		"script, no shebang": {put("exec simd \"$@\"\n"), "neither an ELF executable nor a script"},
		"shebang of nothing": {put("#!\nexit 0\n"), "names no interpreter"},
		"no interpreter":     {put("#!/nonexistent/bash -e\nexit 0\n"), `needs the interpreter "/nonexistent/bash"`},
		"DOS line ends":      {put("#!/bin/sh\r\nexit 0\r\n"), "needs the interpreter"},
		"half an ELF":        {put("\x7fELF\x02\x01\x01"), "damaged ELF"},
		"foreign machine": {func(h *home) {
			h.selfELF(func(data []byte) { binary.LittleEndian.PutUint16(data[0x12:], uint16(elf.EM_SPARC)) })
		}, "built for EM_SPARC, this machine is"},
		"no loader": {func(h *home) {
			h.write(h.l.Binary(staged), string(smallELF(h.t, elf.ET_DYN, "/lib/ld-nowhere.so.1")))
		}, "needs the dynamic loader /lib/ld-nowhere.so.1"},
		"an object file": {func(h *home) { h.write(h.l.Binary(staged), string(smallELF(h.t, elf.ET_REL, "/bin/sh"))) }, "is no executable (ET_REL)"},
		"world-writable": {func(h *home) {
			h.stage(staged, "exit 0")
			require.NoError(h.t, os.Chmod(h.l.Binary(staged), 0o777))
		}, "cannot trust"},
		"version links to /etc":  {func(h *home) { h.link(h.l.Dir(staged), "/etc") }, "escapes"},
		"bin links elsewhere":    {func(h *home) { h.link(filepath.Join(h.l.Dir(staged), "bin"), h.t.TempDir()) }, "escapes"},
		"upgrades links away":    {func(h *home) { h.link(filepath.Join(h.l.Root, "upgrades"), h.t.TempDir()) }, "escapes"},
		"probe ends with 126":    {func(h *home) { h.stage(staged, "echo cannot execute >&2; exit 126") }, "ended with 126: cannot execute"},
		"probe ends with 127":    {func(h *home) { h.stage(staged, "no-such-library-loader") }, "ended with 127"},
		"probe ends by a signal": {func(h *home) { h.stage(staged, "kill -SEGV $$") }, "segmentation fault"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.probe = []string{"version"}
			c.make(h)
			r := h.checker().Check(t.Context(), staged)
			require.False(t, r.Ready())
			assert.Contains(t, r.Problems[0], c.want)
		})
	}
}

// Nor does a file system from which nothing may be executed come as a surprise, also where there is no trial run.
func TestCheckOnANoexecMount(t *testing.T) {
	onAMount(t, "noexec")
}

func TestCheckAcceptsWhatRuns(t *testing.T) {
	for name, make := range map[string]func(h *home){
		"a script":            func(h *home) { h.stage(staged, "exit 0") },
		"probe ends with 1":   func(h *home) { h.stage(staged, "exit 1") },
		"probe ends with 2":   func(h *home) { h.stage(staged, "exit 2") },
		"an ELF of this host": func(h *home) { h.selfELF(func([]byte) {}); h.probe = []string{"-test.run=^$"} },
		"a shebang with blanks": func(h *home) {
			script(h.t, h.l.Binary(staged), "")
			h.write(h.l.Binary(staged), "#! \t/bin/sh -e\nexit 0\n")
		},
		"through env": func(h *home) { h.write(h.l.Binary(staged), "#!/usr/bin/env sh\nexit 0\n") },
		"a link to elsewhere": func(h *home) {
			elsewhere := filepath.Join(h.t.TempDir(), "simd-v2")
			script(h.t, elsewhere, "exit 0")
			h.link(h.l.Binary(staged), elsewhere)
		},
		"a link inside the tree": func(h *home) {
			h.stage("upgrades/v1.9", "exit 0")
			h.link(h.l.Dir(staged), "v1.9")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.probe = []string{"version"}
			make(h)
			r := h.checker().Check(t.Context(), staged)
			assert.Empty(t, r.Problems)
			want, err := HashFile(t.Context(), h.l.Binary(staged))
			require.NoError(t, err)
			assert.Equal(t, want, r.SHA256)
			info, err := os.Stat(h.l.Binary(staged))
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o111), info.Mode().Perm()&0o111, "made executable, as Cosmovisor does")
		})
	}
}

func TestCheckMakesExecutableAsCosmovisorDoes(t *testing.T) {
	h := newHome(t)
	h.stage(staged, "exit 0")
	require.NoError(t, os.Chmod(h.l.Binary(staged), 0o600))
	require.True(t, h.checker().Check(t.Context(), staged).Ready())
	info, err := os.Stat(h.l.Binary(staged))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o711), info.Mode().Perm())
}

func TestCheckNamesASimilarVersion(t *testing.T) {
	h := newHome(t)
	h.stage("upgrades/V2-Demo", "exit 0") // prepared without recasing
	r := h.checker().Check(t.Context(), Of("v2-demo"))
	require.Len(t, r.Problems, 2)
	assert.Contains(t, r.Problems[1], `"V2-Demo" is there`)
}

// In the time that the node is down a check of a verified binary costs one stat, no trial run.
func TestCheckRemembersByIdentity(t *testing.T) {
	h := newHome(t)
	h.probe = []string{"version"}
	runs := filepath.Join(h.l.Home, "runs")
	h.stage(staged, "echo run >> "+runs)
	h.settled(staged)
	c := h.checker()
	first := c.Check(t.Context(), staged)
	require.True(t, first.Ready())
	for range 5 {
		assert.Equal(t, first, c.Check(t.Context(), staged))
	}
	assert.Equal(t, 1, lines(runs))

	bin := h.l.Binary(staged)
	info, err := os.Stat(bin)
	require.NoError(t, err)
	replaced := strings.Replace(h.read(bin), "echo run", "echo two", 1) // the same size, and the time set back
	require.NoError(t, os.WriteFile(bin, []byte(replaced), 0o755))
	require.NoError(t, os.Chtimes(bin, info.ModTime(), info.ModTime()))
	second := c.Check(t.Context(), staged)
	require.True(t, second.Ready())
	assert.NotEqual(t, first.SHA256, second.SHA256, "a replaced binary is noticed: nobody can set a ctime back")
	assert.Equal(t, 2, lines(runs))

	require.NoError(t, os.Remove(bin))
	assert.False(t, c.Check(t.Context(), staged).Ready(), "so is one that was removed")
}

// A binary that was written a moment ago could be written again within the same tick: its identity says nothing yet.
func TestCheckLooksAgainAtAFreshBinary(t *testing.T) {
	h := newHome(t)
	c := h.checker()
	for i := range 20 {
		body := strings.Repeat("#", 1+i%2) + " " + strings.Repeat("x", 2-i%2) // same size, another content
		h.write(h.l.Binary(staged), "#!/bin/sh\n"+body+"\n")
		r := c.Check(t.Context(), staged)
		require.True(t, r.Ready(), r.Problems)
		want, err := HashFile(t.Context(), h.l.Binary(staged))
		require.NoError(t, err)
		require.Equal(t, want, r.SHA256, "write %d", i)
	}
}

// What was missing around the binary may be there a moment later: a failure is not remembered for good.
func TestCheckTriesAFailedBinaryAgain(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	interpreter := filepath.Join(h.l.Home, "sh")
	h.write(h.l.Binary(staged), "#!"+interpreter+"\nexit 0\n")
	h.settled(staged)
	c := h.checker()
	require.False(t, c.Check(t.Context(), staged).Ready())
	h.link(interpreter, "/bin/sh")
	within(t, failedFor+20*time.Second, func() bool { return c.Check(t.Context(), staged).Ready() })
}

func TestCheckNoticesAChangeDuringTheTrial(t *testing.T) {
	h := newHome(t)
	h.probe = []string{"version"}
	h.stage(staged, `cp "$0" "$0.new" && echo "# patched" >> "$0.new" && mv "$0.new" "$0"`)
	r := h.checker().Check(t.Context(), staged)
	require.False(t, r.Ready())
	assert.Contains(t, r.Problems[0], "was changed while it was verified")
}

// A probe that hangs was stopped by us: it looks for what can't be executed, not for what is slow.
func TestCheckOfAHangingProbe(t *testing.T) {
	h := newHome(t)
	h.probe = []string{"version"}
	pid := filepath.Join(h.l.Home, "pid")
	h.stage(staged, "echo $$ > "+pid+"; exec sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Readiness, 1)
	c := h.checker()
	go func() { done <- c.Check(ctx, staged) }()
	within(t, 10*time.Second, func() bool { return lines(pid) == 1 })
	cancel()
	select {
	case r := <-done:
		assert.False(t, r.Ready(), "interrupted is not verified")
	case <-time.After(10 * time.Second):
		require.Fail(t, "the trial outlives its context")
	}
	_, err := os.Stat("/proc/" + strings.TrimSpace(h.read(pid)))
	require.ErrorIs(t, err, os.ErrNotExist, "and nothing of it is left")
	assert.Empty(t, c.known, "nor remembered")
}

func TestCheckTakesASlowProbeForAble(t *testing.T) {
	t.Parallel() // it takes as long as the probe may
	h := newHome(t)
	h.probe = []string{"version"}
	h.stage(staged, "exec sleep 600")
	begun := time.Now()
	r := h.checker().Check(t.Context(), staged)
	assert.Empty(t, r.Problems)
	assert.GreaterOrEqual(t, time.Since(begun), probeTimeout)
}
