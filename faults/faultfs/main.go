// Command faultfs mounts a directory once more, through FUSE, and makes the nth change fail that one program makes in
// it: the program is killed before the change is made, or is told an error. Changes are counted over the whole program,
// whatever the number of its threads; those of other programs (the node, the test) pass uncounted.
//
//	faultfs PROGRAM DIR MOUNTPOINT
//
// It prints "mounted", then answers each line of stdin with one line, and unmounts at the end of stdin:
//
//	arm KINDS N ACTION FOR   from now on count the changes of these kinds (separated by commas; "any" is all of them). The
//	                         nth is met by ACTION: kill, or the name of an error (EIO, ENOSPC, EXDEV). FOR, a Go duration,
//	                         is how long every later one fails in the same way; 0 = that one alone. N = 0 only counts.
//	state                    "count C hits H KIND PATH": changes since arm, how many were met, and the first of these
//
// It is a module of its own so that nothing else needs its dependencies.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: faultfs PROGRAM DIR MOUNTPOINT")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "faultfs:", err)
		os.Exit(1)
	}
}

func serve(program, dir, mountpoint string) error {
	p := &plan{program: program}
	// No timeouts: nothing is cached, so that the kernel asks for every name and the directory below may be looked at.
	server, err := fs.Mount(mountpoint, newRoot(p, dir), &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "faultfs"}})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(answer(p, strings.Fields(in.Text())))
	}
	return server.Unmount()
}

func answer(p *plan, words []string) string {
	switch {
	case len(words) == 5 && words[0] == "arm":
		if err := p.arm(words[1], words[2], words[3], words[4]); err != nil {
			return "error " + err.Error()
		}
		return "armed"
	case len(words) == 1 && words[0] == "state":
		return p.state()
	}
	return "error: arm KINDS N ACTION FOR, or state"
}
