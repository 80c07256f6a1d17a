// Package archive reads what pg_dump wrote in its directory format: what is in it, and per table how many rows with
// which content. No server is needed for that.
package archive

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"nodevisor/snapshot/manifest"
)

// The kinds of manifest.Table.
const (
	Table        = "table"
	Sequence     = "sequence"
	LargeObjects = "large-objects"
)

// An Item is one thing with content.
type Item struct {
	manifest.Table        // Rows and Hash are Content's to fill
	RawSchema      string // the names as the database has them, in its encoding
	RawName        string
	Copy           string // of a table: the statement that brings its data in, COPY … FROM stdin;
	files          []string
	state          string // of a sequence
}

// Archive is an archive whose table of contents was read.
type Archive struct {
	DumpVersion string // pg_dump's
	Items       []Item // in the archive's order
	Roles       []string
	dir         string
}

// setval is how pg_dump brings a sequence to its state.
var setval = regexp.MustCompile(`, (-?[0-9]+), (true|false)\);\s*$`)

// granted finds the roles of a GRANT. It knows plain names alone: what it doesn't see, pg_restore will tell.
var granted = regexp.MustCompile(`(?m)^GRANT .* TO (?:([a-z_][a-z0-9_$]*)|"([^"\n]+)")(?: WITH GRANT OPTION)?;$`)

// Open reads the table of contents of the archive in dir.
func Open(dir string) (*Archive, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read archive: %w", err)
	}
	defer root.Close()
	a := &Archive{dir: dir}
	version, entries, err := readTOC(root)
	if err != nil {
		return nil, fmt.Errorf("cannot read table of contents %s/%s: %w", dir, tocName, err)
	}
	a.DumpVersion = version
	roles := map[string]bool{}
	for i := range entries {
		if err := a.add(&entries[i], roles); err != nil {
			return nil, fmt.Errorf("cannot read table of contents of %s: %s %s: %w", dir, entries[i].desc, printable(entries[i].tag), err)
		}
	}
	for role := range roles {
		a.Roles = append(a.Roles, role)
	}
	slices.Sort(a.Roles)
	return a, nil
}

func (a *Archive) add(e *entry, roles map[string]bool) error {
	if e.owner != "" {
		roles[e.owner] = true
	}
	it := Item{RawSchema: e.schema, RawName: e.tag}
	it.Schema, it.Name = printable(e.schema), printable(e.tag)
	switch e.desc {
	case "ACL", "DEFAULT ACL":
		for _, m := range granted.FindAllStringSubmatch(e.defn, -1) {
			roles[m[1]+m[2]] = true
		}
		delete(roles, "public") // is no role; a role can't be called so
		return nil
	case "TABLE DATA":
		it.Kind, it.Copy, it.files = Table, e.copy, []string{e.file}
		if e.file == "" || !strings.HasPrefix(e.copy, "COPY ") {
			return errors.New("its data is not in the form of COPY")
		}
	case "SEQUENCE SET":
		m := setval.FindStringSubmatch(e.defn)
		if m == nil {
			return errors.New("its state can't be read")
		}
		it.Kind, it.state = Sequence, m[1]+"\t"+m[2]
	case "BLOBS": // one list up to pg_dump 16, one for each thousand objects since 17
		if e.file == "" {
			return errors.New("it has no list")
		}
		i := slices.IndexFunc(a.Items, func(it Item) bool { return it.Kind == LargeObjects })
		if i >= 0 {
			a.Items[i].files = append(a.Items[i].files, e.file)
			return nil
		}
		it = Item{files: []string{e.file}}
		it.Kind, it.Name = LargeObjects, "large objects"
	default:
		return nil
	}
	a.Items = append(a.Items, it)
	return nil
}

// Content reads every row of the archive and gives what is to be recorded, in the archive's order, on that many
// goroutines. It reports how many bytes of the files it has read.
func (a *Archive) Content(ctx context.Context, workers int, report func(done int64)) ([]manifest.Table, error) {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read archive: %w", err)
	}
	defer root.Close()
	tables := make([]manifest.Table, len(a.Items))
	r := &reader{ctx: ctx, root: root, report: report}
	g, ctx := errgroup.WithContext(ctx)
	r.ctx = ctx
	g.SetLimit(max(1, workers))
	for i := range a.Items {
		g.Go(func() error {
			sum, err := r.item(&a.Items[i])
			if err != nil {
				it := &a.Items[i]
				return fmt.Errorf("cannot read %s %s of archive %s: %w", it.Kind, Label(it.Table), a.dir, err)
			}
			tables[i] = a.Items[i].Table
			tables[i].Rows, tables[i].Hash = sum.Count, sum.Hex()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(manifest.Interrupted(ctx, "reading of the archive"), err)
	}
	return tables, nil
}

// Label names a table in a message.
func Label(t manifest.Table) string {
	if t.Schema == "" {
		return t.Name
	}
	return t.Schema + "." + t.Name
}

// A reader reads the files of an archive.
type reader struct {
	ctx    context.Context
	root   *os.Root
	done   atomic.Int64
	report func(int64)
}

func (r *reader) item(it *Item) (Sum, error) {
	switch it.Kind {
	case Sequence:
		return SequenceSum(it.state), nil
	case LargeObjects:
		return r.largeObjects(it.files)
	}
	rows := Rows{terminated: true}
	err := r.each(it.files[0], &rows)
	if err == nil {
		err = rows.Close()
	}
	return rows.Sum, err
}

// SequenceSum digests a sequence's last_value and is_called, as decimal and true or false with a tab between.
func SequenceSum(state string) (s Sum) {
	s.Add(sha256.Sum256([]byte(state)))
	return s
}

// largeObjects reads the lists: a line each with the object's oid and its file.
func (r *reader) largeObjects(lists []string) (sum Sum, err error) {
	for _, list := range lists {
		f, err := r.root.Open(list)
		if err != nil {
			return sum, err
		}
		err = func() error {
			defer f.Close()
			lines := bufio.NewScanner(f)
			for lines.Scan() {
				oid, file, ok := strings.Cut(lines.Text(), " ")
				if !ok {
					return fmt.Errorf("%s: a line names no file", list)
				}
				if err := r.largeObject(&sum, oid, file); err != nil {
					return err
				}
			}
			return lines.Err()
		}()
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

func (r *reader) largeObject(sum *Sum, oid, file string) error {
	n, err := strconv.ParseUint(oid, 10, 32)
	if err != nil {
		return fmt.Errorf("large object %q: %w", oid, err)
	}
	lo := NewLargeObject(uint32(n))
	if err := r.each(file, lo); err != nil {
		return err
	}
	sum.Add(lo.Digest())
	return nil
}

// each writes the content of a file, decompressed, to w.
func (r *reader) each(name string, w io.Writer) error {
	f, suffix, err := r.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	counted := &countingReader{r: r, f: f}
	var src io.Reader = counted
	switch suffix {
	case ".gz":
		z, err := kgzip.NewReader(src)
		if err != nil {
			return err
		}
		defer z.Close()
		src = z
	case ".zst":
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return err
		}
		defer z.Close()
		src = z
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, make([]byte, 256<<10))
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) {
		err = fmt.Errorf("%w: %w", errTruncated, err)
	}
	return err
}

// open finds a file by the name in the table of contents, which lacks the compression's suffix.
func (r *reader) open(name string) (*os.File, string, error) {
	for _, suffix := range []string{"", ".gz", ".zst"} {
		f, err := r.root.Open(name + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			f.Close()
			return nil, "", fmt.Errorf("%s is not a regular file", name)
		}
		return f, suffix, nil
	}
	return nil, "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// A countingReader ends when its context does.
type countingReader struct {
	r *reader
	f *os.File
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := manifest.Interrupted(c.r.ctx, "reading of the archive"); err != nil {
		return 0, err
	}
	n, err := c.f.Read(p)
	done := c.r.done.Add(int64(n))
	if c.r.report != nil {
		c.r.report(done)
	}
	return n, err
}
