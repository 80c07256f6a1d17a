package genesis

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// StateName is the state's file in a root.
const StateName = "genesis-state.sql.gz"

// RootFile is a file of a new root: content, or a file that is copied if it still has the digest that was verified.
type RootFile struct {
	Name string // relative to the root
	Data []byte
	From string
	Sum  string // of From, in hexadecimal
}

// ours are the directories that a root may hold before it is set up.
var ours = []string{"cosmovisor", "supervisor"}

// CheckRoot refuses a root that holds anything but cosmovisor/ and supervisor/: it may be another node's, with its key.
// What an interrupted init left is named in its marker, and is no obstacle. A root that doesn't exist is a new one.
func CheckRoot(root string) (interrupted *Marker, err error) {
	interrupted, err = ReadMarker(root)
	if err != nil {
		return nil, err
	}
	if interrupted != nil && interrupted.Phase == Restoring {
		return nil, hint.New("set up", root, "it is set up already, and waits for its first start", "supervisor run; or name another --root-dir")
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return interrupted, nil
	}
	if err != nil {
		return nil, &hint.Error{Op: "set up", Path: root, Err: err, Hint: "name a directory in --root-dir"}
	}
	for _, e := range entries {
		name := e.Name()
		left := interrupted != nil && (slices.Contains(interrupted.Files, name) || strings.HasPrefix(name, ".atomic-"))
		if !left && !slices.Contains(ours, name) {
			return nil, hint.New("set up", root, fmt.Sprintf("there is %s in it: a root is never overwritten", name), "name a new directory in --root-dir")
		}
	}
	return interrupted, nil
}

// WriteRoot writes the files of a new root, each 0600 and durable, after the marker that names them. The caller has the
// home's lock, and CheckRoot's consent. On error, and after a crash, the marker stays in phase Preparing: done again it
// begins from clean. m ends in phase Preparing; the caller moves it on.
func WriteRoot(root string, m *Marker, files []RootFile) error {
	m.Phase, m.Files = Preparing, nil
	for _, f := range files {
		m.Files = append(m.Files, f.Name)
	}
	if err := m.Write(root); err != nil {
		return err
	}
	if err := atomicfile.RemoveTemps(root); err != nil {
		return err
	}
	for _, f := range files { // all go first: two of different tries must never stand side by side
		if err := atomicfile.Remove(filepath.Join(root, f.Name)); err != nil {
			return err
		}
	}
	for _, f := range files {
		to := filepath.Join(root, f.Name)
		var err error
		if f.From != "" {
			err = CopyFile(f.From, to, f.Sum)
		} else {
			err = atomicfile.WriteFile(to, f.Data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckSum compares a file's digest with the one that was given and with the SHA256SUMS beside it, where that names it:
// a list that was copied together with the files is there to be looked at.
func CheckSum(path, got, given string) error {
	refuse := func(where, want string) error {
		return &hint.Error{
			Op: "use", Path: path, Err: fmt.Errorf("its sha256 is %s, %s says %s", got, where, want),
			Hint: "copy it again from who made it, and compare its sha256 with theirs",
		}
	}
	if given != "" && !strings.EqualFold(given, got) {
		return refuse("the command line", given)
	}
	list := filepath.Join(filepath.Dir(path), SumsName)
	data, err := capped.ReadFile(list, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &hint.Error{Op: "read", Path: list, Err: hint.Cause(err), Hint: "copy it again, or take it away"}
	}
	for lines := bufio.NewScanner(strings.NewReader(data)); lines.Scan(); {
		sum, name, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if strings.TrimPrefix(strings.TrimSpace(name), "*") == filepath.Base(path) && !strings.EqualFold(sum, got) {
			return refuse(SumsName, sum)
		}
	}
	return nil
}

// IsSum tells whether text is a SHA-256 in hexadecimal.
func IsSum(text string) bool {
	sum, err := hex.DecodeString(text)
	return err == nil && len(sum) == 32
}
