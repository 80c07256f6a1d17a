// Package resident keeps what this process holds in memory small while it is at rest.
package resident

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMaps caps what is read of the list of our own mappings, in bytes; a Go program has a few dozen, of 1 KiB each.
const maxMaps = 1 << 20

// region is a mapping of this process, from the address start up to end.
type region struct{ start, end uintptr }

// DropProgram takes the program's own code and constants out of this process's memory. A start runs through most of the
// program, and a quiet supervisor needs a small part of it, which comes back from the page cache as it is used. What can't
// be dropped stays: nothing depends on it.
func DropProgram() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, r := range unchangedRegions(io.LimitReader(f, maxMaps)) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED) // refused where it is locked
	}
}

// unchangedRegions finds, in proc_pid_smaps(5), the private mappings of files that can't be written through and of which
// no page is a copy of our own. Such copies are the relocations of a position-independent program, or a debugger's
// breakpoints: dropped, they would come back as they are in the file.
func unchangedRegions(smaps io.Reader) []region {
	var all []region
	var candidate region
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"): // "00400000-00c1f000 r-xp 00000000 fe:00 4711  /usr/bin/supervisor"
			candidate = region{}
			if code := fields[1]; (code == "r-xp" || code == "r--p") && fields[4] != "0" {
				candidate = parseRegion(fields[0])
			}
		case len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0" && candidate.end > candidate.start:
			all = append(all, candidate)
		}
	}
	return all
}

func parseRegion(text string) region {
	from, to, _ := strings.Cut(text, "-")
	start, err1 := strconv.ParseUint(from, 16, strconv.IntSize)
	end, err2 := strconv.ParseUint(to, 16, strconv.IntSize)
	if err1 != nil || err2 != nil {
		return region{}
	}
	return region{uintptr(start), uintptr(end)}
}
