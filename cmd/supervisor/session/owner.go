package session

import (
	"os"
	"os/user"
	"strconv"
	"syscall"

	"nodevisor/upgrade/version"
)

// Beside is how a command runs a program of the node's: with the version's environment, and for root in another user's home
// as that user. Whoever can write to that tree would be root otherwise, and what the program leaves there would be root's. as is
// nil for everybody else; `run` is told whom it runs the node as, and obeys.
func (s *Session) Beside(v version.Version) (env []string, as *syscall.Credential) {
	_, env = s.Command(v)
	info, err := os.Stat(s.Layout.Home)
	if s.Running || os.Geteuid() != 0 || err != nil {
		return env, nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return env, nil
	}
	as = &syscall.Credential{Uid: st.Uid, Gid: st.Gid}
	owner, err := user.LookupId(strconv.FormatUint(uint64(st.Uid), 10))
	if err != nil {
		return env, as // a user of a container: it has no name, and no further groups
	}
	if ids, err := owner.GroupIds(); err == nil {
		for _, id := range ids {
			if gid, err := strconv.ParseUint(id, 10, 32); err == nil {
				as.Groups = append(as.Groups, uint32(gid))
			}
		}
	}
	return append(env, "HOME="+owner.HomeDir, "USER="+owner.Username, "LOGNAME="+owner.Username), as
}
