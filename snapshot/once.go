package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nodevisor/internal/atomicfile"
)

// maxOnce caps the record of the restore that was done last, in bytes.
const maxOnce = 64 << 10

// once is the record of the last restore that its caller gave a name to: done again under that name it has no effect. A
// caller that is killed between the restore and its own record of it would else put the data aside a second time, and
// with a database take up its room again.
type once struct {
	Name     string `json:"name"`
	Snapshot string `json:"snapshot"`
	Done     bool   `json:"done"` // false: begun; the swap may be ahead, done, or never come
}

// state is the folder of this home's own records in the store's directory, which several homes may share.
func (s *Store) state() string {
	sum := sha256.Sum256([]byte(s.real))
	return filepath.Join(s.dir, ".home-"+hex.EncodeToString(sum[:4]))
}

func (s *Store) oncePath() string { return filepath.Join(s.state(), "last-restore.json") }

// readOnce is the zero value where there is no record. What can't be read is taken for none: the restore is done again,
// which costs room and loses nothing.
func (s *Store) readOnce() (o once) {
	info, err := os.Lstat(s.oncePath())
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxOnce {
		return o
	}
	data, err := os.ReadFile(s.oncePath())
	if err != nil || json.Unmarshal(data, &o) != nil {
		return once{}
	}
	return o
}

func (s *Store) writeOnce(o once) error {
	data, err := json.Marshal(o)
	if err == nil {
		err = atomicfile.MkdirAll(s.state(), 0o700)
	}
	if err == nil {
		err = atomicfile.WriteFile(s.oncePath(), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot record the restore: %w", err)
	}
	return nil
}

// beginOnce is called before the first source's decision. A restore without a name takes the record of another one away:
// what Recover finishes is then not taken for that.
func (s *Store) beginOnce(name, snapshot string) error {
	if name != "" {
		return s.writeOnce(once{Name: name, Snapshot: snapshot})
	}
	if err := atomicfile.Remove(s.oncePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot forget the restore before: %w", err)
	}
	return nil
}

// swappedOnce is called when every source is swapped, before the journals of the swaps go: from here the restore is done.
func (s *Store) swappedOnce() error {
	o := s.readOnce()
	if o.Name == "" || o.Done {
		return nil
	}
	o.Done = true
	return s.writeOnce(o)
}
