package genesis

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

const (
	// DocumentName is the file of the document in a template.
	DocumentName = "genesis.json"
	// SumsName is the file of the digests, in the form of sha256sum(1).
	SumsName = "SHA256SUMS"
	// ManifestName is the file that describes a template.
	ManifestName = "template.json"

	suffix        = ".genesis"
	partialSuffix = ".partial"
	schema        = 1
	maxManifest   = 1 << 20
)

// Template describes a directory with a genesis document and what belongs to it. It is template.json, and the answer of
// the commands with --json.
type Template struct {
	Schema    int               `json:"schema"`
	Kind      string            `json:"kind"`     // kwil, cosmos, command
	Version   string            `json:"version"`  // kwil: of the node that it is for
	Snapshot  *string           `json:"snapshot"` // the id of the snapshot that it belongs to
	Height    *int64            `json:"height"`   // of the last block of the old network
	MadeAt    time.Time         `json:"made_at"`
	ChainID   string            `json:"chain_id"` // of the new network
	Document  string            `json:"document"` // its file's name
	Canonical string            `json:"canonical_sha256"`
	State     *string           `json:"state"`        // the state's file, where it is one of its own
	StateSum  *string           `json:"state_sha256"` // of the state, decompressed
	SHA256    map[string]string `json:"sha256"`       // of each file, by its name
	Defaults  []string          `json:"defaults"`     // what nobody said, and was taken from elsewhere
}

// PathOf is where the template of a snapshot lies: beside the snapshot, because all that lies in it is in its manifest.
func PathOf(snapshots, id string) string { return filepath.Join(snapshots, id+suffix) }

// Build makes the template at dir anew. fill writes the files into the directory it is given, the document as
// genesis.json, and completes t; what all templates have is added here. An older template is replaced in one step, only
// when the new one is whole and on the disk: where Build fails it stays. Nothing in it is for others' eyes: modes are
// 0700 and 0600.
func Build(ctx context.Context, dir string, t *Template, fill func(ctx context.Context, dir string) error) error {
	if err := replaceable(dir); err != nil {
		return err
	}
	partial := dir + partialSuffix
	if err := atomicfile.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("cannot make template: %w", err)
	}
	if err := errors.Join(atomicfile.RemoveTree(partial), os.Mkdir(partial, 0o700)); err != nil {
		return fmt.Errorf("cannot make template: %w", err)
	}
	err := atomicfile.Adopt(partial)
	if err == nil {
		err = fill(ctx, partial)
	}
	if err == nil {
		err = finish(partial, t)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = replace(partial, dir)
	}
	if err != nil {
		return errors.Join(err, atomicfile.RemoveTree(partial))
	}
	return nil
}

// replaceable refuses to put a template in the place of something else.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == ManifestName }) {
		err = errors.New("there is something in it that is no template")
	}
	if err != nil {
		return &hint.Error{Op: "make template in", Path: dir, Err: err, Hint: "give an empty directory, or one that doesn't exist"}
	}
	return nil
}

// finish reads back what fill wrote, hashes it, and writes the two lists.
func finish(dir string, t *Template) error {
	doc, _, err := ReadFile(filepath.Join(dir, DocumentName))
	if err != nil {
		return err
	}
	t.Schema, t.Document, t.ChainID, t.Canonical = schema, DocumentName, doc.ChainID(), doc.Hash()
	t.MadeAt = time.Now().UTC().Truncate(time.Second)
	if t.Defaults == nil {
		t.Defaults = []string{}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	t.SHA256 = map[string]string{}
	for _, e := range entries {
		if name := e.Name(); name != SumsName && name != ManifestName {
			if t.SHA256[name], err = seal(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("cannot make template: %w", err)
			}
		}
	}
	data, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(
		atomicfile.WriteFile(filepath.Join(dir, SumsName), t.sums(), 0o600),
		atomicfile.WriteFile(filepath.Join(dir, ManifestName), append(data, '\n'), 0o600),
	)
}

// sums is the list for `sha256sum -c`.
func (t *Template) sums() []byte {
	var b strings.Builder
	for _, name := range t.Files() {
		fmt.Fprintf(&b, "%s  %s\n", t.SHA256[name], name)
	}
	return []byte(b.String())
}

// Files lists the template's files, but for the two lists.
func (t *Template) Files() []string {
	var names []string
	for name := range t.SHA256 {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// seal gives a file its mode, puts it on the disk, and hashes it.
func seal(path string) (string, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), errors.Join(f.Chmod(0o600), atomicfile.Adopt(path), f.Sync())
}

// CopyFile copies a regular file durably, with mode 0600, and only if its SHA-256 is sum: what was verified is what is
// written, whatever became of the file in between.
func CopyFile(from, to, sum string) error {
	f, err := OpenRegular(from)
	if err != nil {
		return fmt.Errorf("cannot copy %s: %w", from, err)
	}
	defer f.Close()
	return atomicfile.Write(to, 0o600, atomicfile.Full, func(w io.Writer) error {
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, h), f); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != sum {
			return fmt.Errorf("%s: sha256: want %s, got %s", from, sum, got)
		}
		return nil
	})
}

// SumFile is the SHA-256 of a regular file, in hexadecimal.
func SumFile(path string) (string, error) {
	f, err := OpenRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// replace puts the directory at from in the place of to, at every moment of which one of the two is there.
func replace(from, to string) error {
	if err := atomicfile.SyncDir(from); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		err = atomicfile.SyncDir(filepath.Dir(to))
	case errors.Is(err, unix.ENOENT):
		return atomicfile.Rename(from, to)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a file system that can't exchange
		if err = atomicfile.RemoveTree(to); err == nil {
			return atomicfile.Rename(from, to)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot put template in place: %w", err)
	}
	return atomicfile.RemoveTree(from)
}

// ReadTemplate reads the description of the template in dir. fs.ErrNotExist: there is none.
func ReadTemplate(dir string) (*Template, error) {
	path := filepath.Join(dir, ManifestName)
	data, err := capped.ReadBytes(path, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, hint.Cause(err))
	}
	t := new(Template)
	err = json.Unmarshal(data, t)
	if err == nil && t.Schema != schema {
		err = fmt.Errorf("it is of schema %d, and this program knows %d", t.Schema, schema)
	}
	if err == nil && (t.Document != DocumentName || !t.named(t.Document) || (t.State != nil && !t.named(*t.State))) {
		err = errors.New("it names files that it doesn't list")
	}
	if err != nil {
		return nil, &hint.Error{Op: "read", Path: path, Err: err, Hint: "make the template again: supervisor genesis create"}
	}
	return t, nil
}

func (t *Template) named(name string) bool {
	_, ok := t.SHA256[name]
	return ok && filepath.Base(name) == name
}

// Verify compares the files of the template in dir with its digests.
func (t *Template) Verify(dir string) error {
	for _, name := range t.Files() {
		got, err := SumFile(filepath.Join(dir, filepath.Base(name)))
		if err == nil && got != t.SHA256[name] {
			err = fmt.Errorf("sha256: want %s, got %s", t.SHA256[name], got)
		}
		if err != nil {
			return &hint.Error{Op: "use template", Path: filepath.Join(dir, name), Err: err, Hint: "make the template again: supervisor genesis create"}
		}
	}
	return nil
}

// Sweep removes the templates in the directory of snapshots whose snapshot is gone, finished ones and begun ones. It is
// called after whatever deletes snapshots.
func Sweep(snapshots string) error {
	entries, err := os.ReadDir(snapshots)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), partialSuffix), suffix)
		if !ok || !e.IsDir() || id == "" || strings.HasPrefix(id, ".") {
			continue
		}
		if _, gone := os.Lstat(filepath.Join(snapshots, id)); errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, atomicfile.RemoveTree(filepath.Join(snapshots, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove templates without a snapshot: %w", err)
	}
	return nil
}
