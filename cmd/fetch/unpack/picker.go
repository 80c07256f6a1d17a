package unpack

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
)

// entryKind is what an archive's entry is.
type entryKind int

const (
	other entryKind = iota // a link, a device, a FIFO, something unknown: never wanted
	regular
	directory
)

const (
	maxName  = 1024 // bytes of an entry's name
	maxShown = 6    // names in an error
)

// picker goes through an archive's entries and writes the one that is the binary: bin/<name> or <name> at the top, or,
// where the archive holds one file only, that one whatever its name (as Cosmovisor does). It refuses the whole archive for a
// single entry that no honest packer of a node writes: what else may be in it isn't known then.
type picker struct {
	Binary
	name  string // of the binary
	seen  map[string]bool
	files []string // the regular ones, as far as an error shows them
	count int64    // of the regular ones
	bytes int64    // that the headers of the entries promise
	found string   // the binary's name in the archive
}

func (b Binary) picker() *picker {
	return &picker{Binary: b, name: filepath.Base(b.Path), seen: map[string]bool{}}
}

// entry takes the next entry. open gives its content; it is called at most once, and only for a file that is wanted.
func (p *picker) entry(name string, kind entryKind, size int64, open func() (io.ReadCloser, error)) error {
	clean, err := p.check(name, kind)
	if err != nil || kind == directory {
		return err
	}
	if size < 0 || size > p.MaxBytes-p.bytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, p.MaxBytes)
	}
	p.bytes += size
	if p.count++; p.count <= maxShown {
		p.files = append(p.files, clean)
	}
	wanted := clean == p.name || clean == path.Join("bin", p.name)
	switch {
	case wanted && p.found != "":
		return fmt.Errorf("2 binaries: %s and %s", p.found, clean)
	case wanted:
		p.found = clean
	case p.count > 1 || p.found != "":
		return nil
	}
	// The first file is written even under another name: it may turn out to be the only one.
	content, err := open()
	if err != nil {
		return err
	}
	defer content.Close()
	return p.write(&limited{r: content, left: size, max: size})
}

// check refuses what must not be in the archive of a node. It returns the entry's name in its one spelling.
func (p *picker) check(name string, kind entryKind) (string, error) {
	if int64(len(p.seen)) >= p.MaxFiles {
		return "", fmt.Errorf("%w: more than %d entries", ErrTooLarge, p.MaxFiles)
	}
	if len(name) > maxName {
		return "", fmt.Errorf("entry with a name of %d bytes", len(name))
	}
	clean := path.Clean(name)
	switch {
	case kind == other:
		return "", fmt.Errorf("entry %q is neither a file nor a directory", name)
	case !fs.ValidPath(clean) || strings.ContainsAny(name, "\\\x00"):
		return "", fmt.Errorf("entry %q leads out of the archive", name)
	case strings.Contains("/"+name+"/", "/../"):
		return "", fmt.Errorf("entry %q leads out of the archive", name)
	case clean == "." && kind == directory:
		return clean, nil
	case clean == ".":
		return "", fmt.Errorf("entry %q has no name", name)
	case p.seen[clean]:
		return "", fmt.Errorf("entry %q occurs twice", clean)
	}
	p.seen[clean] = true
	return clean, nil
}

// end says whether the binary was among the entries.
func (p *picker) end() error {
	switch {
	case p.found != "" || p.count == 1:
		return nil
	case p.count == 0:
		return fmt.Errorf("the archive is empty")
	}
	shown := strings.Join(p.files, ", ")
	if p.count > maxShown {
		shown += fmt.Sprintf(", and %d more", p.count-maxShown)
	}
	return fmt.Errorf("the archive holds neither bin/%s nor %s, but %s", p.name, p.name, shown)
}
