package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
)

// shutTimeout bounds the shutting of a clone, also after a cancellation.
const shutTimeout = 15 * time.Second

// EndOrphans ends what an earlier process of ours began and the server hasn't noticed the end of: the creation of the
// database of that name. Only ours can be: nobody else makes such names.
func (w Owner) EndOrphans(ctx context.Context, conn *pgx.Conn, name string) error {
	for {
		var left int
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE pid <> pg_backend_pid() AND application_name = $1 AND state = 'active' AND starts_with(query, $2)`,
			AppName, "CREATE DATABASE "+Quote(name)+" ").Scan(&left)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

// Open lets sessions into a clone of ours on the server v, for the time of a dump; shut keeps them out again. Two may read
// it at a time (its archive is made, and a template): the last one shuts it, which the lock tells. After a crash in between
// it stays open to its owner and to superusers, and is shut by the next one.
func (w Owner) Open(ctx context.Context, v *Server, name string, log *slog.Logger) (shut func(), err error) {
	const locked = "(hashtextextended($1, 1))" // 0 is that of a creation
	set := func(ctx context.Context, conn *pgx.Conn, allow bool) error {
		o, err := w.Find(ctx, conn, name)
		if err == nil && o == nil {
			return hint.New("open clone", name, "there is no such database of ours", "supervisor snapshot list")
		}
		if err == nil {
			err = Formatted(ctx, conn, fmt.Sprintf("ALTER DATABASE %%I ALLOW_CONNECTIONS %t", allow), name)
		}
		return v.OnAdmin().ExplainUnlessHinted(ctx, "open clone "+name+" in", err)
	}
	conn, err := v.Admin(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = conn.Exec(ctx, "SELECT pg_advisory_lock_shared"+locked, name); err == nil {
		err = set(ctx, conn, true)
	}
	if err != nil {
		Close(conn)
		return nil, v.OnAdmin().ExplainUnlessHinted(ctx, "open clone "+name+" in", err)
	}
	return func() {
		defer Close(conn)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutTimeout)
		defer cancel()
		last := false
		_, err := conn.Exec(ctx, "SELECT pg_advisory_unlock_shared"+locked, name)
		if err == nil {
			err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock"+locked, name).Scan(&last)
		}
		if err == nil && last {
			err = set(ctx, conn, false)
		}
		if err != nil {
			log.Warn("clone left open", "source", w.Source, "clone", name, "error", err)
		}
	}, nil
}
