package main

import (
	"context"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a file or directory of the mount. Each method that changes something asks the plan first.
type node struct {
	fs.LoopbackNode
	plan *plan
}

// file is an open file. The kernel must not write past us to the file below (FUSE passthrough), so that way is hidden;
// copy_file_range then arrives as reads and writes.
type file struct{ *fs.LoopbackFile }

func (f file) PassthroughFd() (int, bool) { return 0, false }

// directory is an open directory; what it embeds is what the library's own one can do.
type directory struct {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	fs.FileFsyncdirer
	node *node
}

func newRoot(p *plan, dir string) *node {
	root := &fs.LoopbackRoot{Path: dir}
	root.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{fs.LoopbackNode{RootData: r}, p}
	}
	n := &node{fs.LoopbackNode{RootData: root}, p}
	root.RootNode = n
	return n
}

// meet asks the plan about a change at name in this directory, or of this file where name is "".
func (n *node) meet(ctx context.Context, k kind, name string) syscall.Errno {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return 0
	}
	return n.plan.meet(caller.Pid, k, filepath.Join(n.Path(n.Root()), name))
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		if e := n.meet(ctx, open, ""); e != 0 {
			return nil, 0, e
		}
	}
	h, x, e := n.LoopbackNode.Open(ctx, flags)
	return wrap(h), x, e
}

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if e := n.meet(ctx, open, name); e != 0 {
		return nil, nil, 0, e
	}
	i, h, x, e := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return i, wrap(h), x, e
}

func wrap(h fs.FileHandle) fs.FileHandle {
	if f, ok := h.(*fs.LoopbackFile); ok {
		return file{f}
	}
	return h
}

func (n *node) Write(ctx context.Context, h fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if e := n.meet(ctx, write, ""); e != 0 {
		return 0, e
	}
	return h.(fs.FileWriter).Write(ctx, data, off)
}

func (n *node) Fsync(ctx context.Context, h fs.FileHandle, flags uint32) syscall.Errno {
	if e := n.meet(ctx, fsync, ""); e != 0 {
		return e
	}
	return h.(fs.FileFsyncer).Fsync(ctx, flags)
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, x, e := n.LoopbackNode.OpendirHandle(ctx, flags)
	if e != 0 {
		return nil, 0, e
	}
	return directory{h.(fs.FileReaddirenter), h.(fs.FileReleasedirer), h.(fs.FileSeekdirer), h.(fs.FileFsyncdirer), n}, x, 0
}

func (d directory) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	if e := d.node.meet(ctx, fsync, ""); e != 0 {
		return e
	}
	return d.FileFsyncdirer.Fsyncdir(ctx, flags)
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if e := n.meet(ctx, rename, name); e != 0 {
		return e
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.meet(ctx, symlink, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Symlink(ctx, target, name, out)
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.meet(ctx, link, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if e := n.meet(ctx, unlink, name); e != 0 {
		return e
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if e := n.meet(ctx, rmdir, name); e != 0 {
		return e
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.meet(ctx, mkdir, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

// Mknod makes sockets.
func (n *node) Mknod(ctx context.Context, name string, mode, rdev uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.meet(ctx, open, name); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mknod(ctx, name, mode, rdev, out)
}

func (n *node) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.meet(ctx, setattr, ""); e != 0 {
		return e
	}
	return n.LoopbackNode.Setattr(ctx, h, in, out)
}
