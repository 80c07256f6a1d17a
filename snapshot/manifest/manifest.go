// Package manifest is the document that makes a directory a snapshot: what it holds, how each file came into it, and,
// once it was verified, the digest of each file.
//
// It stands below the store (package snapshot) and the sources (snapshot/datadir), so that both speak of the same
// records without importing each other.
package manifest

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"time"
)

// Name is the file name of the manifest in a snapshot's directory; Schema is the version of its form.
const (
	Name   = "manifest.json"
	Schema = 1
)

// The states of a snapshot. Damaged is never written: it is what a list says of a manifest that can't be trusted, or of a
// snapshot beside whose manifest there is a Damage.
const (
	Sealed   = "sealed"   // list, sizes and modes are recorded, all data is on the disk; enough for a rollback
	Verified = "verified" // each file's digest is recorded, everything lies in the snapshot's own directory
	Damaged  = "damaged"
)

// The ways in which a file comes into a snapshot.
const (
	Reflink  = "reflink"
	Hardlink = "hardlink"
	Copy     = "copy"
	Clone    = "clone" // of a database, inside its server
	Dump     = "dump"  // of a database: pg_dump's directory format
)

// The types of an Entry.
const (
	File = "file"
	Dir  = "dir"
	Link = "link"
)

// Manifest describes one snapshot. Order between snapshots is that of Seq alone: the clock may have jumped.
type Manifest struct {
	Schema     int        `json:"schema"`
	ID         string     `json:"id"`
	Seq        int64      `json:"seq"` // counts up within a store; must stay near the top, PeekSeq reads no further
	Label      string     `json:"label"`
	Height     *int64     `json:"height"` // nil = not known
	CreatedAt  time.Time  `json:"created_at"`
	DurationMS int64      `json:"duration_ms"` // from Create's begin to the sealed directory, by the monotonic clock
	State      string     `json:"state"`
	VerifiedAt *time.Time `json:"verified_at"`
	Pinned     bool       `json:"pinned"`
	Home       string     `json:"home"` // the home whose snapshot it is: several may share a directory
	Bytes      int64      `json:"bytes"`
	Sources    []Source   `json:"sources"`
	Error      *string    `json:"error,omitempty"` // of a Damaged one: what is wrong with it; never written
	Digest     string     `json:"digest"`          // SHA-256 of every byte of the document before it; must stay the last member
}

// Source describes what was taken of one source.
type Source struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind"`
	Path     string     `json:"path"`   // where it was, links resolved
	Method   string     `json:"method"` // the cheapest way that any of its files came in
	Bytes    int64      `json:"bytes"`
	Files    int        `json:"files"`
	Frozen   *string    `json:"frozen"` // where the data lies until Complete fetched it; nil: in the snapshot's own directory
	Note     *string    `json:"note"`   // what its reader must know about its worth
	Followed []Followed `json:"followed"`
	Mounts   []string   `json:"mounts"` // mount points inside the source, copied as plain content
	Skipped  []Skipped  `json:"skipped"`
	Entries  []Entry    `json:"entries"`            // parents before children; "." is the source itself
	Database *Database  `json:"database,omitempty"` // of kind postgres alone
}

// Followed is a link inside a source that led out of it: its target was copied in its place.
type Followed struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Skipped is something in a source that no copy can hold.
type Skipped struct {
	Path string `json:"path"`
	Type string `json:"type"` // socket, fifo, device, lost+found
}

// Entry is one file, directory or link. Members that don't apply to its type are left out: there may be a million.
type Entry struct {
	Path   string    `json:"path"` // slash-separated, within the source
	Type   string    `json:"type"`
	Mode   Mode      `json:"mode"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Size   int64     `json:"size"`
	MTime  time.Time `json:"mtime"`
	Method string    `json:"method,omitempty"`
	SHA256 string    `json:"sha256,omitempty"`
	Target string    `json:"target,omitempty"`
	Signer bool      `json:"signer,omitempty"` // a signer's state: never restored over a newer one
}

// Mode is a file's permission bits (with setuid, setgid, sticky) as in chmod(2), written in octal.
type Mode uint32

// MarshalText renders the bits as "0644".
func (m Mode) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%04o", uint32(m)), nil }

// UnmarshalText reads what MarshalText writes.
func (m *Mode) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 8, 12)
	if err != nil {
		return fmt.Errorf("mode %q: %w", text, err)
	}
	*m = Mode(v)
	return nil
}

// Fault is one way in which a snapshot differs from its manifest.
type Fault struct {
	Path     string `json:"path"` // relative to the snapshot's directory
	Want     string `json:"want"`
	Got      string `json:"got"`
	Unproven bool   `json:"-"` // the next look may find it right: it could not be read, or lies on a disk that may not be there
}

// Error lets a Fault be the cause of a refusal.
func (f Fault) Error() string { return fmt.Sprintf("%s: want %s, got %s", f.Path, f.Want, f.Got) }

// Need is room that a source will take on the file system of Path, in bytes.
type Need struct {
	Path  string
	Bytes int64
}

// Estimate is what a snapshot of a source would take, read while the node still runs.
type Estimate struct {
	Method      string
	CrossDevice bool // the frozen copy lies beside the source and is fetched after the restart
	Bytes       int64
	Files       int
	Needs       []Need
}

// Job is one Freeze.
type Job struct {
	ID    string
	Dir   string              // the snapshot's own directory, not yet published; it exists
	Peers []string            // earlier copies of the same source: links between them and the live files are ours
	Room  func(...Need) error // refuses what would leave too little free space
	Live  bool                // the node runs: only what can be copied consistently beneath it
}

// Restore is one source's part of a restore.
type Restore struct {
	ID                 string
	From               string // the directory that holds the source's copy
	Record             Source
	Verified           bool // the manifest holds digests: the copy lies in the snapshot's own directory
	SignerFromSnapshot bool // take the signer's state from the snapshot where there is no live one
	Elsewhere          bool // not in the place of the live data
}

// Signer says which state of a signer a restore leaves in place.
type Signer struct {
	Path   string `json:"path"`   // within the source
	Winner string `json:"winner"` // live | snapshot
	Height int64  `json:"height"`
	Round  int64  `json:"round"`
	Step   int64  `json:"step"`
}

// Observe is how a source says how far a phase is: bytes done, bytes in all.
type Observe func(phase string, done, total int64)

// check refuses a document whose names could lead out of a directory or whose tree makes no sense. The digest guards
// against decay, not against a hand that wrote both.
func (m *Manifest) check() error {
	if m.Schema != Schema {
		return fmt.Errorf("schema %d is not %d: written by another version of this program", m.Schema, Schema)
	}
	if m.State != Sealed && m.State != Verified {
		return fmt.Errorf("state %q is none of sealed, verified", m.State)
	}
	if m.Seq < 0 {
		return fmt.Errorf("sequence number %d", m.Seq)
	}
	seen := map[string]bool{}
	for i := range m.Sources {
		s := &m.Sources[i]
		if !IsName(s.Name) || seen[s.Name] {
			return fmt.Errorf("source name %q is no file name or there twice", s.Name)
		}
		seen[s.Name] = true
		if err := s.check(m.State == Verified); err != nil {
			return fmt.Errorf("source %q: %w", s.Name, err)
		}
	}
	return nil
}

func (s *Source) check(hashed bool) error {
	if hashed && s.Frozen != nil {
		return fmt.Errorf("a verified snapshot can't lie outside its directory")
	}
	types := make(map[string]string, len(s.Entries))
	for i := range s.Entries {
		e := &s.Entries[i]
		switch {
		case !filepath.IsLocal(e.Path) || path.Clean(e.Path) != e.Path:
			return fmt.Errorf("path %q leads out of the source", e.Path)
		case types[e.Path] != "":
			return fmt.Errorf("path %q is there twice", e.Path)
		case e.Path != "." && types[path.Dir(e.Path)] != Dir:
			return fmt.Errorf("path %q: its directory is not listed before it", e.Path)
		case e.Type != File && e.Type != Dir && e.Type != Link, e.Path == "." && e.Type != Dir:
			return fmt.Errorf("path %q: type %q", e.Path, e.Type)
		case e.Size < 0:
			return fmt.Errorf("path %q: size %d", e.Path, e.Size)
		case hashed && e.Type == File && len(e.SHA256) != 64:
			return fmt.Errorf("path %q: no digest in a verified snapshot", e.Path)
		}
		types[e.Path] = e.Type
	}
	return nil
}

// IsName tells whether a source may be called so: its name is a folder beside the manifest.
func IsName(name string) bool {
	return filepath.IsLocal(name) && filepath.Base(name) == name && name[0] != '.' && name != Name && name != DamageName
}

// FileMode is m as package fs knows it.
func (m Mode) FileMode() fs.FileMode {
	f := fs.FileMode(m & 0o777)
	for bit, mode := range map[Mode]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			f |= mode
		}
	}
	return f
}

// Interrupted is ctx's error with what was being done.
func Interrupted(ctx context.Context, doing string) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%s interrupted: %w", doing, context.Cause(ctx))
}
