package swap

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// maxSigner caps a signer's state: CometBFT's is below 1 KiB.
const maxSigner = 1 << 20

// hrs is how far a signer has signed (CometBFT, privval/file.go: FilePVLastSignState). Whoever signs again at or below
// it with other content signs double, and is slashed.
type hrs struct{ height, round, step int64 }

func (a hrs) compare(b hrs) int {
	return cmp.Or(cmp.Compare(a.height, b.height), cmp.Compare(a.round, b.round), cmp.Compare(a.step, b.step))
}

// signerState is one file that holds such a state.
type signerState struct {
	data []byte
	at   hrs
	st   unix.Stat_t
}

// readSigner reads a signer's state, following links: what the node reads counts. nil: there is none.
func readSigner(path string) (*signerState, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := new(signerState)
	if err := unix.Fstat(int(f.Fd()), &s.st); err != nil {
		return nil, err
	}
	if s.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	if s.data, err = io.ReadAll(io.LimitReader(f, maxSigner+1)); err != nil {
		return nil, err
	}
	s.at, err = parseSigner(s.data)
	return s, err
}

// parseSigner reads height, round and step. CometBFT writes the height as a string; a number means the same.
func parseSigner(data []byte) (hrs, error) {
	if len(data) > maxSigner {
		return hrs{}, fmt.Errorf("more than %d bytes", maxSigner)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return hrs{}, errors.New("no JSON object")
	}
	got := map[string]int64{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return hrs{}, err
		}
		var v any
		if err := dec.Decode(&v); err != nil {
			return hrs{}, err
		}
		name, _ := key.(string)
		if name != "height" && name != "round" && name != "step" {
			continue
		}
		if _, twice := got[name]; twice {
			return hrs{}, fmt.Errorf("%s is there twice", name)
		}
		text := fmt.Sprint(v)
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 || text != strconv.FormatInt(n, 10) { // "+1" and "01" are none to the node
			return hrs{}, fmt.Errorf("%s is no number: %v", name, v)
		}
		got[name] = n
	}
	if _, err := dec.Token(); err != nil {
		return hrs{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return hrs{}, errors.New("something follows the JSON object")
	}
	if len(got) != 3 {
		return hrs{}, errors.New("height, round or step is missing")
	}
	return hrs{got["height"], got["round"], got["step"]}, nil
}

// A contest decides which state of a signer remains. Old and new are the roots of the live tree and of its replacement;
// while entries are being swapped one by one, parts of the live tree lie in either of two roots.
type contest struct {
	id       string // of the snapshot
	old      []string
	new      string
	allowNew bool // the snapshot's state may be taken where there is no live one
}

// winner is the newest state: the live one if it is at least the snapshot's. nil: neither has one.
func (c contest) winner(rel string) (best *signerState, from string, err error) {
	snap, err := readSigner(filepath.Join(c.new, rel))
	if err != nil {
		return nil, "", c.unreadable(filepath.Join(c.new, rel), err)
	}
	var live *signerState
	for _, root := range c.old {
		s, err := readSigner(filepath.Join(root, rel))
		if err != nil {
			return nil, "", c.unreadable(filepath.Join(root, rel), err)
		}
		if s != nil && (live == nil || s.at.compare(live.at) > 0) {
			live = s
		}
	}
	switch {
	case live == nil && snap == nil:
		return nil, "", nil
	case live == nil && !c.allowNew:
		return nil, "", &hint.Error{
			Op: "restore signer state", Path: filepath.Join(c.old[0], rel),
			Err:  errors.New("there is no live one, and the snapshot's may be older than what the key has signed since"),
			Hint: c.takeSnapshots() + "    # only if this key signed nothing after the snapshot, anywhere",
		}
	case live != nil && (snap == nil || live.at.compare(snap.at) >= 0):
		return live, "live", nil
	}
	return snap, "snapshot", nil
}

func (c contest) unreadable(path string, err error) error {
	return &hint.Error{
		Op: "read signer state", Path: path, Err: err,
		Hint: "find out what this key signed last; only then move the file aside, and: " + c.takeSnapshots(),
	}
}

// takeSnapshots is the restore that takes the snapshot's state.
func (c contest) takeSnapshots() string {
	return "supervisor snapshot restore " + c.id + " --signer-state snapshot"
}

// settle writes the winner into the replacement and syncs it, and says who won; nil: there is no such state. It must be
// the last thing before a swap: between staging and swap, someone may have run the node by hand.
func (c contest) settle(rel string) (*manifest.Signer, error) {
	best, from, err := c.winner(rel)
	if best == nil || err != nil {
		return nil, err
	}
	if from == "live" {
		if err := best.put(filepath.Join(c.new, rel)); err != nil {
			return nil, fmt.Errorf("cannot write signer state: %w", err)
		}
	}
	return best.result(rel, from), nil
}

// preview is settle without writing.
func (c contest) preview(rel string) (*manifest.Signer, error) {
	best, from, err := c.winner(rel)
	if best == nil || err != nil {
		return nil, err
	}
	return best.result(rel, from), nil
}

// decide calls f, a contest's settle or preview, for each state.
func decide(rels []string, f func(rel string) (*manifest.Signer, error)) ([]manifest.Signer, error) {
	var all []manifest.Signer
	for _, rel := range rels {
		s, err := f(rel)
		if err != nil {
			return nil, err
		}
		if s != nil {
			all = append(all, *s)
		}
	}
	return all, nil
}

func (s *signerState) result(rel, from string) *manifest.Signer {
	return &manifest.Signer{Path: rel, Winner: from, Height: s.at.height, Round: s.at.round, Step: s.at.step}
}

// put writes the state to path, durably, with the owner and mode that it had.
func (s *signerState) put(path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() == int64(len(s.data)) {
		if data, err := os.ReadFile(path); err == nil && bytes.Equal(data, s.data) {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			return errors.Join(f.Sync(), f.Close())
		}
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(path, s.data, manifest.Mode(s.st.Mode&0o777).FileMode()); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		return os.Lchown(path, int(s.st.Uid), int(s.st.Gid))
	}
	return nil
}

// live lists the signers' states in parts of the live tree.
func (p *Place) live(roots ...string) ([]string, error) {
	var all []string
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			switch {
			case d.IsDir() && (rel == Within || rel == LostFound):
				return fs.SkipDir
			case !d.IsDir() && p.IsSigner(rel):
				all = append(all, rel)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot look for signer states: %w", err)
		}
	}
	return all, nil
}

// Preview tells which signer states would remain if the tree in from, snapshot id's, which holds the given states, took the live
// tree's place. A live state that from lacks must not get lost either.
func (p *Place) Preview(id, from string, signers []string, fromSnapshot bool) ([]manifest.Signer, error) {
	return p.outcome(contest.preview, id, from, signers, fromSnapshot)
}

// Carry writes the winning states into the tree in to, which is a copy and not to be swapped in.
func (p *Place) Carry(id, to string, signers []string, fromSnapshot bool) ([]manifest.Signer, error) {
	return p.outcome(contest.settle, id, to, signers, fromSnapshot)
}

func (p *Place) outcome(f func(contest, string) (*manifest.Signer, error), id, tree string, signers []string, fromSnapshot bool) ([]manifest.Signer, error) {
	live, err := p.live(p.Path)
	if err != nil {
		return nil, err
	}
	c := contest{id: id, old: []string{p.Path}, new: tree, allowNew: fromSnapshot}
	return decide(union(signers, live), func(rel string) (*manifest.Signer, error) { return f(c, rel) })
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}
