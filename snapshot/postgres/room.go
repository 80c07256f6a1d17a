package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"nodevisor/internal/capped"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// room is what is known of the server's side: where a clone would lie, and what it would take there.
type room struct {
	needs   []manifest.Need // on file systems that are seen from here
	unseen  string          // why they aren't; "" = they are
	missing string          // what is lacking; "" = it fits, or isn't known
}

// roomFor reads what a clone of the database that conn is connected to would take: its size on each of its tablespaces.
// The size is taken from the server, without touching a table that may be locked. dir is where the archive goes.
func (s *Source) roomFor(ctx context.Context, conn *pgx.Conn, size int64, dir string) (room, error) {
	var r room
	paths, unseen, err := s.places(ctx, conn)
	if err != nil {
		return r, err
	}
	if r.unseen = unseen; unseen != "" {
		if s.o.FreeSpace >= 0 {
			r.unseen = ""
			if s.o.FreeSpace < size {
				r.missing = fmt.Sprintf("free_space says %s, and a clone takes %s", human(s.o.FreeSpace), human(size))
			}
		}
		return r, nil
	}
	for _, path := range paths {
		need := manifest.Need{Path: path, Bytes: size}
		r.needs = append(r.needs, need)
		if sameDevice(path, dir) {
			need.Bytes += dump.Size(size)
		}
		free, err := s.o.Free(path)
		if err != nil {
			return r, err
		}
		if free < need.Bytes && r.missing == "" {
			r.missing = fmt.Sprintf("%s has room for %s more, and %s are needed", path, human(max(free, 0)), human(need.Bytes))
		}
	}
	return r, nil
}

// places lists the directories of the server's that hold the database, where they can be seen from here; else it says
// why not. A database with tables in several tablespaces is counted in full for each.
func (s *Source) places(ctx context.Context, conn *pgx.Conn) (paths []string, unseen string, err error) {
	var data string
	err = conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&data)
	if server.State(err) == server.StateNoRights {
		return nil, "the role may not ask where the server's data lies (GRANT pg_read_all_settings)", nil
	}
	if err != nil {
		return nil, "", err
	}
	if unseen, err = isDataOf(ctx, conn, data); unseen != "" || err != nil {
		return nil, unseen, err
	}
	rows, err := conn.Query(ctx, `SELECT DISTINCT pg_tablespace_location(t) FROM (
		SELECT dattablespace AS t FROM pg_database WHERE datname = current_database()
		UNION SELECT reltablespace FROM pg_class WHERE reltablespace <> 0 AND NOT relisshared) AS all_of_them`)
	if err != nil {
		return nil, "", err
	}
	paths, err = pgx.CollectRows(rows, pgx.RowTo[string])
	for i := range paths {
		if paths[i] == "" { // pg_default
			paths[i] = data
		}
	}
	slices.Sort(paths)
	return paths, "", err
}

// elsewhere is why the server's side is not seen, in the usual case.
const elsewhere = "the server's data directory isn't on this host"

// isDataOf proves that dir, on this host, is the data directory of conn's server: a path alone says nothing where the
// server runs in a container, behind a tunnel, or elsewhere. It gives the reason where it can't.
func isDataOf(ctx context.Context, conn *pgx.Conn, dir string) (unseen string, err error) {
	is, err := byPidFile(ctx, conn, dir)
	if !errors.Is(err, fs.ErrPermission) {
		if err == nil && !is {
			unseen = elsewhere
		}
		return unseen, err
	}
	for range 3 { // a file may be made in it between the two looks
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Sprintf("%s can't be looked at: %v", dir, err), nil
		}
		var seen int64 // of st_ctime the server tells whole seconds
		err := conn.QueryRow(ctx, "SELECT extract(epoch FROM change)::bigint FROM pg_stat_file('.')").Scan(&seen)
		if server.State(err) == server.StateNoRights {
			return "the server's data directory can't be told from another one of that name (GRANT pg_read_server_files, or run as root)", nil
		}
		if err != nil {
			return "", err
		}
		if seen == st.Ctim.Sec {
			return "", nil
		}
	}
	return elsewhere, nil
}

// byPidFile compares postmaster.pid with the server: the third line is its start in Unix seconds, the fourth its port
// (miscadmin.h, LOCK_FILE_LINE_*). fs.ErrPermission: only the server's user may read it.
func byPidFile(ctx context.Context, conn *pgx.Conn, dir string) (bool, error) {
	text, err := capped.ReadFile(filepath.Join(dir, "postmaster.pid"), 4<<10)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var start, port int64
	err = conn.QueryRow(ctx, "SELECT extract(epoch FROM pg_postmaster_start_time())::bigint, current_setting('port')::bigint").Scan(&start, &port)
	lines := strings.Split(text, "\n")
	if err != nil || len(lines) < 4 {
		return false, err
	}
	began, _ := strconv.ParseInt(lines[2], 10, 64) // else 0: no server's start
	p, _ := strconv.ParseInt(lines[3], 10, 64)
	return p == port && max(began-start, start-began) <= 10, nil
}

// sameDevice tells whether two paths, or their nearest parents that are there, lie on one file system.
func sameDevice(a, b string) bool {
	device := func(path string) (uint64, bool) {
		for ; ; path = filepath.Dir(path) {
			var st unix.Stat_t
			if unix.Stat(path, &st) == nil {
				return st.Dev, true
			}
			if path == filepath.Dir(path) {
				return 0, false
			}
		}
	}
	x, okX := device(a)
	y, okY := device(b)
	return okX && okY && x == y
}

// freeOf is the free space of path's file system for an ordinary user, in bytes (statfs(2)).
func freeOf(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("cannot read free space of %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Frsize, nil
}

// human renders bytes for people.
func human(n int64) string {
	const units = "KMGTPE"
	v, i := float64(n), -1
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i < 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
