//go:build faults

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// kind is a file system as it lies on a device.
type kind struct {
	name    string
	size    int64 // of the device, in bytes: about the least that mkfs takes
	mkfs    []string
	options string
	unit    int // what the device writes as a whole or not at all, in bytes
}

// kinds are the file systems that validators run on. What one forgives another doesn't: ext4 commits all names with any
// fsync, and by default writes a file out that replaces another; btrfs makes durable what was synced, and little else. It
// needs a disk that doesn't tear its superblock of 4 KiB, as today's with physical sectors of that size don't: where one is
// torn, nothing mounts it (btrfs-rescue(8)), whatever was synced.
var kinds = []kind{
	{"ext4", 64 << 20, []string{"mkfs.ext4", "-q"}, "loop,noauto_da_alloc", 512},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q"}, "loop", 512},
	{"btrfs", 128 << 20, []string{"mkfs.btrfs", "-q"}, "loop", 4096},
}

// device is a disk whose power can be cut (faultdisk), and the file system on it.
type device struct {
	kind
	*server
	file, dir string
	mounted   bool
}

// newDevice makes a mounted device that goes with the test.
func newDevice(t *testing.T, k kind) *device {
	t.Helper()
	root, err := os.MkdirTemp("", "nv")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(root) })
	d := &device{kind: k, file: filepath.Join(root, "f", "disk"), dir: filepath.Join(root, "m")}
	require.NoError(t, os.Mkdir(filepath.Dir(d.file), 0o755))
	require.NoError(t, os.Mkdir(d.dir, 0o755))
	d.server = serve(t, programs.faultdisk, strconv.FormatInt(k.size, 10), filepath.Dir(d.file))
	must(t, k.mkfs[0], append(k.mkfs[1:], d.file)...)
	d.attach(t)
	t.Cleanup(func() { d.detach(t) })
	return d
}

// attach mounts the file system; what its journal holds is replayed by that.
func (d *device) attach(t *testing.T) {
	t.Helper()
	must(t, "mount", "-t", d.name, "-o", d.options, d.file, d.dir)
	d.mounted = true
}

func (d *device) detach(t *testing.T) {
	t.Helper()
	if !d.mounted {
		return
	}
	must(t, "umount", d.dir)
	d.mounted = false
	if d.name == "btrfs" { // else a device that is older than the one seen last is refused
		must(t, "btrfs", "device", "scan", "--forget")
	}
}

// record begins a recording of what is written from now on; all that was before is on the disk.
func (d *device) record(t *testing.T, name string) {
	t.Helper()
	must(t, "sync", "-f", d.dir)
	d.ask(t, "record "+name)
}

// end ends the recording, and returns how many flushes it has.
func (d *device) end(t *testing.T) (flushes int) {
	t.Helper()
	_, err := fmt.Sscanf(d.ask(t, "end"), "ended %d", &flushes)
	require.NoError(t, err)
	return flushes
}

// cut makes the device what a power cut after the nth flush of the recording leaves, where a seed other than 0 keeps some
// of what was written after it; and tells until when the world may have seen what happened before the cut.
func (d *device) cut(t *testing.T, name string, n int, seed uint64) (until time.Time, kept, lost int) {
	t.Helper()
	d.detach(t)
	return d.cutDetached(t, name, n, seed)
}

// cutDetached does so with a device that is not mounted.
func (d *device) cutDetached(t *testing.T, name string, n int, seed uint64) (until time.Time, kept, lost int) {
	t.Helper()
	var ns int64
	_, err := fmt.Sscanf(d.ask(t, fmt.Sprintf("cut %s %d %d %d", name, n, seed, d.unit)), "cut %d %d %d", &ns, &kept, &lost)
	require.NoError(t, err)
	d.attach(t)
	return time.Unix(0, ns), kept, lost
}
