package manifest

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func sample() *Manifest {
	height := int64(1200)
	return &Manifest{
		Schema: Schema, ID: "ID", Seq: 7, Label: "v2", Height: &height, CreatedAt: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC), State: Sealed,
		Home: "/home", Sources: []Source{{Name: "data", Kind: "dir", Path: "/home/data", Method: Copy, Entries: []Entry{
			{Path: ".", Type: Dir, Mode: 0o750},
			{Path: "db", Type: Dir, Mode: 0o2770},
			{Path: "db/file", Type: File, Mode: 0o640, Size: 3, Method: Copy},
			{Path: "link", Type: Link, Target: "db"},
		}}},
	}
}

func TestWriteRead(t *testing.T) {
	dir := t.TempDir()
	_, err := Read(dir)
	require.ErrorIs(t, err, fs.ErrNotExist)
	m := sample()
	require.NoError(t, Write(dir, m))
	got, err := Read(dir)
	require.NoError(t, err)
	assert.Equal(t, m, got)
	seq, err := PeekSeq(dir)
	require.NoError(t, err)
	assert.EqualValues(t, 7, seq)
	require.NoError(t, Write(dir, got), "written again, as by a pin")
	again, err := Read(dir)
	require.NoError(t, err)
	assert.Equal(t, m, again)
	data, err := os.ReadFile(filepath.Join(dir, Name))
	require.NoError(t, err)
	assert.True(t, json.Valid(data))
	assert.Contains(t, string(data), `"mode":"2770"`)
	assert.Contains(t, string(data), `"verified_at":null`, "absent values are null")
}

func TestEverySingleBitFlipIsFound(t *testing.T) {
	good, err := encode(sample())
	require.NoError(t, err)
	for bit := range len(good) * 8 {
		bad := append([]byte{}, good...)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := decode(bad); err == nil {
			t.Fatalf("bit %d of byte %d (%q → %q) was not found", bit%8, bit/8, good[bit/8], bad[bit/8])
		}
	}
	for n := range good {
		if _, err := decode(good[:n]); err == nil {
			t.Fatalf("cut to %d bytes, and not found", n)
		}
	}
	_, err = decode(append(good, ' '))
	assert.Error(t, err)
}

func TestWhatMakesNoSense(t *testing.T) {
	hash := strings.Repeat("a", 64)
	frozen := "/x"
	for name, change := range map[string]func(m *Manifest){
		"schema":             func(m *Manifest) { m.Schema = 2 },
		"number":             func(m *Manifest) { m.Seq = -1 },
		"state":              func(m *Manifest) { m.State = "fine" },
		"name":               func(m *Manifest) { m.Sources[0].Name = "../x" },
		"name of a manifest": func(m *Manifest) { m.Sources[0].Name = Name },
		"two of a name":      func(m *Manifest) { m.Sources = append(m.Sources, m.Sources[0]) },
		"escape":             func(m *Manifest) { m.Sources[0].Entries[2].Path = "../file" },
		"absolute":           func(m *Manifest) { m.Sources[0].Entries[2].Path = "/etc/passwd" },
		"not clean":          func(m *Manifest) { m.Sources[0].Entries[2].Path = "db//file" },
		"below a link": func(m *Manifest) {
			m.Sources[0].Entries = append(m.Sources[0].Entries, Entry{Path: "link/file", Type: File})
		},
		"below a file": func(m *Manifest) {
			m.Sources[0].Entries = append(m.Sources[0].Entries, Entry{Path: "db/file/x", Type: File})
		},
		"twice":             func(m *Manifest) { m.Sources[0].Entries = append(m.Sources[0].Entries, Entry{Path: "db", Type: Link}) },
		"orphan":            func(m *Manifest) { m.Sources[0].Entries = m.Sources[0].Entries[2:] },
		"type":              func(m *Manifest) { m.Sources[0].Entries[2].Type = "socket" },
		"size":              func(m *Manifest) { m.Sources[0].Entries[2].Size = -1 },
		"verified unhashed": func(m *Manifest) { m.State = Verified },
		"verified elsewhere": func(m *Manifest) {
			m.State, m.Sources[0].Entries[2].SHA256, m.Sources[0].Frozen = Verified, hash, &frozen
		},
		"root is a link": func(m *Manifest) { m.Sources[0].Entries[0].Type = Link },
	} {
		m := sample()
		change(m)
		_, err := encode(m)
		assert.Error(t, err, name)
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, Write(dir, sample()))
	path := filepath.Join(dir, Name)
	require.NoError(t, os.Rename(path, path+".real"))
	require.NoError(t, os.Symlink(Name+".real", path))
	_, err := Read(dir)
	require.Error(t, err, "a link is not followed")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = Read(dir)
	require.ErrorIs(t, err, ErrDamaged)
	_, err = PeekSeq(dir)
	require.ErrorIs(t, err, ErrDamaged)
}

// Manifests of a later version may have more members: the digest covers them, reading passes them over.
func TestUnknownMembers(t *testing.T) {
	data, err := encode(sample())
	require.NoError(t, err)
	at := len(data) - 64 - len(ending)
	body := []byte(strings.Replace(string(data[:at]), `"seq":7`, `"seq":7,"later":{"x":[1]}`, 1))
	m, err := decode(append(append(body, digest(body)...), ending...))
	require.NoError(t, err)
	assert.EqualValues(t, 7, m.Seq)
}

// FuzzDecode goes past the digest, to the parser itself. What is read holds no name that leads out of the snapshot, and is
// written again as what it is.
func FuzzDecode(f *testing.F) {
	hashed, note := sample(), "read it"
	hashed.State, hashed.VerifiedAt, hashed.Sources[0].Note = Verified, &hashed.CreatedAt, &note
	hashed.Sources[0].Entries[2].SHA256 = strings.Repeat("a", 64)
	hashed.Sources[0].Database = &Database{}
	for _, m := range []*Manifest{sample(), hashed, {Schema: Schema, State: Sealed, ID: "seq"}} {
		good, err := encode(m)
		require.NoError(f, err)
		f.Add(good[:len(good)-64-len(ending)])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := decode(slices.Concat(body, []byte(digest(body)), ending))
		if err != nil {
			return
		}
		for _, s := range m.Sources {
			require.True(t, filepath.IsLocal(s.Name) && s.Name == filepath.Base(s.Name), s.Name)
			for _, e := range s.Entries {
				require.True(t, filepath.IsLocal(e.Path), e.Path)
			}
		}
		first, err := encode(m)
		require.NoError(t, err)
		back, err := decode(first)
		require.NoError(t, err)
		second, err := encode(back)
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
		seq, err := peekSeq(bytes.NewReader(first))
		if len(m.ID) < 8<<10 { // it stands near the top
			require.NoError(t, err)
			require.Equal(t, m.Seq, seq)
		}
	})
}
