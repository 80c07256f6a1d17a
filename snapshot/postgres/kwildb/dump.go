package kwildb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/snapshot/postgres/server"
)

const (
	// minKwilClient is the first pg_dump with --no-table-access-method.
	minKwilClient = 15
	// kwilRestrictKey stands in for pg_dump's random one; the lines that hold it are left out of the state later.
	kwilRestrictKey = "nodevisor"
	// kwilOptions pin what a role's, a database's or the server's settings would otherwise change in the dump: its bytes
	// are hashed, and every node of the network must get the same.
	kwilOptions = "-c bytea_output=hex -c standard_conforming_strings=on"
)

// restrictMinors are the first minor versions with --restrict-key, by major version (CVE-2025-8714, released
// 2025-08-14); newer major versions all have it.
var restrictMinors = map[int]int{15: 14, 16: 10, 17: 6}

// Dump writes the database as Kwil's own `snapshot create` has pg_dump write it, at the moment that State is of. The
// bytes aren't cleaned yet. A lock that another session holds is waited for 30 s at most; ctx ends pg_dump at once.
func (q *Database) Dump(ctx context.Context, w io.Writer) error {
	cmd, err := q.server.Program("pg_dump", "", q.arguments()...)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "PGOPTIONS="+strings.TrimSpace(lastEnv(cmd.Env, "PGOPTIONS")+" "+kwilOptions))
	// A pipe of our own: the one that package exec makes is closed a moment after the program's end, whether it was
	// read to its end or not.
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout = in
	ran := make(chan error, 1)
	go func() {
		_, err := proc.Output(ctx, cmd, 0)
		ran <- errors.Join(err, in.Close())
	}()
	_, copied := io.Copy(w, out)
	if copied != nil {
		out.Close() // ends pg_dump, which can't write any more
	}
	err = <-ran
	if copied != nil {
		return fmt.Errorf("cannot take pg_dump's output: %w", copied)
	}
	return q.explainDump(ctx, err)
}

// explainDump says what a person can do about a failed pg_dump. Its messages are in English: LC_ALL is C.
func (q *Database) explainDump(ctx context.Context, err error) error {
	var exit *proc.ExitError
	if err == nil || !errors.As(err, &exit) {
		return err
	}
	next := "do it again; the server's log may say more"
	says := func(text string) bool { return bytes.Contains(exit.Result.Stderr, []byte(text)) }
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case says("lock timeout"):
		next = "end the session that holds a lock: SELECT pid, application_name, query FROM pg_stat_activity"
	case says("permission denied"):
		next = "the role must be allowed to read every table of the database: connect as the node's own role"
	case says("server version mismatch"):
		next = "set [snapshot] pg_bin to the directory of newer client programs"
	}
	return &hint.Error{Op: "dump", Path: q.server.Where(), Err: err, Hint: next}
}

// arguments are those of Kwil's tools, and what makes the dump repeatable and one with the state that was read. The
// options that Kwil gives twice are given once.
func (q *Database) arguments() []string {
	args := []string{
		"--format=plain", "--no-unlogged-table-data", "--no-comments", "--no-publications", "--no-tablespaces",
		"--no-table-access-method", "--no-security-labels", "--no-subscriptions", "--no-owner", "--no-password",
		"--exclude-table=kwild_internal.sentry", "--encoding=UTF8",
		"--snapshot=" + q.snapshot, "--lock-wait-timeout=" + strconv.FormatInt(server.LockTimeout.Milliseconds(), 10),
	}
	// With it come the statements about the database itself, which Kwil's tool keeps. Those of a clone are ours: its
	// limit and its rights, under a name that no other server knows.
	if q.o.Database == "" {
		args = append(args, "--create")
	}
	if server.Major(q.client) >= 16 {
		args = append(args, "--large-objects") // before: --blobs
	} else {
		args = append(args, "--blobs")
	}
	if knowsRestrictKey(q.client) {
		args = append(args, "--restrict-key="+kwilRestrictKey)
	}
	for _, schema := range q.schemas() {
		args = append(args, "--schema="+schema)
	}
	return args
}

// schemas are the patterns of pg_dump's --schema for all that belongs to the state: not kwild_chain, nor what only the old
// network knows.
func (q *Database) schemas() []string {
	if q.o.Version == V09 {
		return []string{"kwild_voting", "kwild_accts", "kwild_internal", "ds_*"}
	}
	all := []string{"kwild_voting", "kwild_accts", "kwild_engine", "kwild_internal"}
	for _, name := range q.state.Namespaces {
		// Quoted: a name is no pattern, and keeps its case.
		if pattern := server.Quote(name); !slices.Contains(all, name) {
			all = append(all, pattern)
		}
	}
	return all
}

// knowsRestrictKey tells whether a pg_dump has the option, and so writes the lines that it is about.
func knowsRestrictKey(client string) bool {
	first, ok := restrictMinors[server.Major(client)]
	if !ok {
		return server.Major(client) >= 18
	}
	_, minor, _ := strings.Cut(client, ".")
	n, err := strconv.Atoi(minor)
	return err == nil && n >= first
}

// lastEnv is the value of the last setting of a name, which is the one that counts; "" where there is none.
func lastEnv(env []string, name string) (value string) {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}
