package resident

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUnchangedRegions(t *testing.T) {
	const smaps = `00400000-00c1f000 r-xp 00000000 fe:00 4711                               /usr/bin/supervisor
Size:               8316 kB
Anonymous:             0 kB
AnonHugePages:         0 kB
VmFlags: rd ex mr mw me
00c1f000-01600000 r--p 0081f000 fe:00 4711                               /usr/bin/a program - with a name
Anonymous:             0 kB
01600000-01700000 r--p 01200000 fe:00 4711                               /usr/bin/supervisor
Anonymous:             4 kB
01700000-01800000 r-xp 01300000 fe:00 4711                               /usr/bin/supervisor
Anonymous:             4 kB
01800000-01900000 rw-p 01300000 fe:00 4711                               /usr/bin/supervisor
Anonymous:             0 kB
01900000-01a00000 r--s 00000000 fe:00 4712                               /var/lib/shared
Anonymous:             0 kB
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
torn-zzz r-xp 00000000 fe:00 4711
Anonymous:             0 kB
`
	assert.Equal(t, []region{{0x400000, 0xc1f000}, {0xc1f000, 0x1600000}}, unchangedRegions(strings.NewReader(smaps)))
}

// The program goes on, with less of its code in memory.
func TestDropProgram(t *testing.T) {
	read := func() (resident, regions int) {
		data, err := os.ReadFile("/proc/self/smaps")
		require.NoError(t, err)
		all := unchangedRegions(strings.NewReader(string(data)))
		require.NotEmpty(t, all)
		_, after, found := strings.Cut(string(data), strconv.FormatUint(uint64(all[0].start), 16)+"-")
		require.True(t, found)
		_, after, _ = strings.Cut(after, "\nRss:")
		resident, err = strconv.Atoi(strings.Fields(after)[0])
		require.NoError(t, err)
		return resident, len(all)
	}
	before, _ := read()
	DropProgram()
	after, regions := read()
	assert.Less(t, after, before, "KiB of the code")
	assert.Positive(t, regions)
}
