// Command faultdisk is a disk whose power can be cut: one file, served through FUSE, that a loop device makes a disk of.
// The loop device passes every write on, and every flush (a barrier of the file system above, and so the end of each
// fsync) as a sync of the file. Both are recorded, and the disk can be taken back to any flush, as if the power had been
// cut between that one and the next: a disk keeps what was written before the flush; of what came after it its cache
// kept, or lost, each unit as it liked, in any order.
//
//	faultdisk SIZE MOUNTPOINT
//
// It prints "mounted", then answers each line of stdin with one line, and unmounts at the end of stdin. The disk is
// MOUNTPOINT/disk and has SIZE bytes, all zero.
//
//	record NAME      from now on record what is written, in place of the earlier recording of that name: "recording"
//	end              stop it: "ended FLUSHES", the number of flushes in it
//	cut NAME N SEED UNIT
//	                 make the disk what a power cut between the Nth flush (0 = the begin of the recording) and the next
//	                 leaves: of what was written after the Nth, each unit of UNIT bytes (a multiple of 512) is there or not
//	                 as chance wants it; with SEED 0 nothing of it is. Answers "cut NANOSECONDS KEPT LOST": the moment, since
//	                 1970, at which the next flush was answered, and sectors. Nothing may have the disk open meanwhile.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: faultdisk SIZE MOUNTPOINT")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "faultdisk:", err)
		os.Exit(1)
	}
}

func serve(size, mountpoint string) error {
	bytes, err := strconv.ParseInt(size, 10, 64)
	if err != nil || bytes <= 0 || bytes%sectorSize != 0 {
		return fmt.Errorf("%q is no size in whole sectors", size)
	}
	d := &disk{size: bytes, now: content{}, recordings: map[string]*recording{}}
	root := &fs.Inode{}
	server, err := fs.Mount(mountpoint, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultdisk", MaxWrite: 1 << 20, DisableSplice: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, &file{disk: d}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		reply, err := answer(d, strings.Fields(in.Text()))
		if err != nil {
			reply = "error: " + err.Error()
		}
		fmt.Println(reply)
	}
	return server.Unmount()
}

func answer(d *disk, words []string) (string, error) {
	switch {
	case len(words) == 2 && words[0] == "record":
		d.record(words[1])
		return "recording", nil
	case len(words) == 1 && words[0] == "end":
		return fmt.Sprintf("ended %d", d.end()), nil
	case len(words) == 5 && words[0] == "cut":
		n, err := strconv.Atoi(words[2])
		seed, err2 := strconv.ParseUint(words[3], 10, 64)
		unit, err3 := strconv.ParseInt(words[4], 10, 64)
		if err := errors.Join(err, err2, err3); err != nil || unit < sectorSize || unit%sectorSize != 0 {
			return "", errors.Join(err, fmt.Errorf("a unit of %d bytes", unit))
		}
		at, kept, lost, err := d.cut(words[1], n, seed, unit/sectorSize)
		return fmt.Sprintf("cut %d %d %d", at.UnixNano(), kept, lost), err
	}
	return "", errors.New("record NAME, end, or cut NAME N SEED UNIT")
}

// file is the disk as the kernel sees it.
type file struct {
	fs.Inode
	disk *disk
}

// Open turns the page cache off: each write arrives as it is made, and after a cut nothing old is read.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(f.disk.size)
	return 0
}

// Setattr is asked for by programs that make file systems: the size is what it is.
func (f *file) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return f.Getattr(ctx, h, out)
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, to []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(f.disk.read(to, off)), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if off+int64(len(data)) > f.disk.size {
		return 0, syscall.ENOSPC
	}
	f.disk.write(data, off)
	return uint32(len(data)), 0
}

// Fsync is a flush.
func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.disk.flush(time.Now())
	return 0
}
