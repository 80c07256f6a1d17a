package main

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// sectorSize is what any disk writes as a whole or not at all, in bytes: the logical block of a loop device.
const sectorSize = 512

// content is what lies on a disk: sectors by their number. None is ever changed in place; one that is missing is zero.
type content map[int64][]byte

var zeros [sectorSize]byte

func (c content) put(number int64, sector []byte) {
	if bytes.Equal(sector, zeros[:]) {
		delete(c, number)
		return
	}
	c[number] = sector
}

// written is a sector that was written, or where it has no data, a flush.
type written struct {
	number int64
	data   []byte
	at     time.Time // of a flush
}

// recording is what happened to a disk, in order, since it was base.
type recording struct {
	base content
	log  []written
	end  time.Time
}

// disk is a disk's present content, and what is known of its past.
type disk struct {
	size int64

	mu         sync.Mutex
	now        content
	recordings map[string]*recording
	current    *recording // nil: nothing is recorded
}

func (d *disk) read(to []byte, off int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	to = to[:max(0, min(int64(len(to)), d.size-off))]
	for i := 0; i < len(to); {
		at := off + int64(i)
		sector := d.now[at/sectorSize]
		if sector == nil {
			sector = zeros[:]
		}
		i += copy(to[i:], sector[at%sectorSize:])
	}
	return to
}

// write changes sectors; a part of one, which only the making of a file system writes, is written as the whole.
func (d *disk) write(data []byte, off int64) {
	data = bytes.Clone(data) // the buffer is the library's
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(data) > 0 {
		number, from := off/sectorSize, int(off%sectorSize)
		n := min(len(data), sectorSize-from)
		sector := data[:n:n]
		if n < sectorSize {
			sector = make([]byte, sectorSize)
			copy(sector, d.now[number])
			copy(sector[from:], data[:n])
		}
		d.now.put(number, sector)
		if d.current != nil {
			d.current.log = append(d.current.log, written{number: number, data: sector})
		}
		data, off = data[n:], off+int64(n)
	}
}

func (d *disk) flush(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil {
		d.current.log = append(d.current.log, written{at: at})
	}
}

func (d *disk) record(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current = &recording{base: maps.Clone(d.now)}
	d.recordings[name] = d.current
}

func (d *disk) end() (flushes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil {
		return 0
	}
	for _, w := range d.current.log {
		if w.data == nil {
			flushes++
		}
	}
	d.current.end = time.Now()
	d.current = nil
	return flushes
}

// cut takes the disk back to a moment of a recording that has ended. How much of what wasn't flushed is kept is chance,
// too: from nearly nothing to nearly all. unit is how many sectors this disk writes as a whole where one write has them.
func (d *disk) cut(name string, n int, seed uint64, unit int64) (at time.Time, kept, lost int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.recordings[name]
	if r == nil || r == d.current {
		return at, 0, 0, fmt.Errorf("there is no recording %q that has ended", name)
	}
	random := rand.New(rand.NewPCG(seed, uint64(n)))
	odds := random.Float64()
	now, flushes := maps.Clone(r.base), 0
	last, keep := int64(-1), false
	for _, w := range r.log {
		switch {
		case w.data == nil:
			if flushes == n {
				d.now = now
				return w.at, kept, lost, nil
			}
			flushes++
		case flushes < n:
			now.put(w.number, w.data)
		default:
			if w.number != last+1 || w.number%unit == 0 {
				keep = seed != 0 && random.Float64() < odds
			}
			if last = w.number; !keep {
				lost++
				continue
			}
			now.put(w.number, w.data)
			kept++
		}
	}
	if flushes < n {
		return at, 0, 0, fmt.Errorf("there are %d flushes in %q", flushes, name)
	}
	d.now = now
	return r.end, kept, lost, nil
}
