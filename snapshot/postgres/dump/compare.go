package dump

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/archive"
	"nodevisor/snapshot/postgres/server"
)

// Compare compares the content of a database with what is recorded of the archive that it was restored from: the
// same columns in the same form as pg_dump wrote them, so that equal rows are equal text. at is the archive.
func (p Tools) Compare(ctx context.Context, database, at string, rec manifest.Source, beside bool) ([]manifest.Fault, error) {
	a, err := archive.Open(at)
	if err != nil {
		return nil, err
	}
	if len(a.Items) != len(rec.Database.Tables) {
		return []manifest.Fault{{
			Path: rec.Name, Want: fmt.Sprintf("%d tables, sequences and large objects", len(rec.Database.Tables)), Got: fmt.Sprintf("an archive with %d", len(a.Items)),
		}}, nil
	}
	c := &comparison{server: p.Server, database: database, rec: rec, observe: p.Observe, total: rec.Database.Size}
	work := make(chan int)
	got := make([]manifest.Table, len(a.Items))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		for i := range a.Items {
			select {
			case work <- i:
			case <-gctx.Done():
				return manifest.Interrupted(gctx, "comparison")
			}
		}
		return nil
	})
	for range min(Jobs(beside), max(1, len(a.Items))) {
		g.Go(func() error { return c.worker(gctx, a.Items, got, work) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var faults []manifest.Fault
	for i, want := range rec.Database.Tables {
		if got[i] != want {
			faults = append(faults, manifest.Fault{Path: rec.Name + "/" + archive.Label(want), Want: shown(want), Got: shown(got[i])})
		}
	}
	p.Observe("verify", c.total, c.total)
	return faults, nil
}

func shown(t manifest.Table) string {
	return fmt.Sprintf("%s of %d rows, hash %s", t.Kind, t.Rows, t.Hash)
}

// A comparison reads a database as pg_dump does.
type comparison struct {
	server   *server.Server
	database string
	rec      manifest.Source
	observe  manifest.Observe
	done     atomic.Int64
	total    int64
}

// asPgDump are the settings of pg_dump's sessions that the text of a value depends on (pg_dump.c, setup_connection).
const asPgDump = `SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET timezone = 'UTC'; SET bytea_output = 'hex';
	SET lc_monetary = 'C'; SET row_security = off; SET lock_timeout = 0; SET statement_timeout = 0; SET synchronize_seqscans = off; SET jit = off;
	SELECT set_config('search_path', '', false), set_config('client_encoding', current_setting('server_encoding'), false)`

func (c *comparison) worker(ctx context.Context, items []archive.Item, got []manifest.Table, work <-chan int) error {
	conn, err := c.server.Connect(ctx, c.database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the session ends with us
	var filters map[string]string
	if _, err = conn.PgConn().Exec(ctx, asPgDump).ReadAll(); err == nil {
		filters, err = extensionFilters(ctx, conn)
	}
	for err == nil {
		i, more := <-work
		if !more {
			return nil
		}
		it := &items[i]
		var sum archive.Sum
		if sum, err = c.read(ctx, conn, it, filters); err == nil {
			got[i] = it.Table
			got[i].Rows, got[i].Hash = sum.Count, sum.Hex()
		}
	}
	return c.server.Explain(ctx, "compare "+c.database+" on", err)
}

// extensionFilters are the conditions under which pg_dump takes rows of extensions' own tables (pg_extension.extconfig).
// The others come with CREATE EXTENSION.
func extensionFilters(ctx context.Context, conn *pgx.Conn) (map[string]string, error) {
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, u.condition FROM pg_catalog.pg_extension e,
		unnest(e.extconfig, e.extcondition) AS u(rel, condition), pg_catalog.pg_class c, pg_catalog.pg_namespace n
		WHERE c.oid = u.rel AND n.oid = c.relnamespace AND u.condition <> ''`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]string{}
	for rows.Next() {
		var schema, name, condition string
		if err := rows.Scan(&schema, &name, &condition); err != nil {
			return nil, err
		}
		all[schema+"\x00"+name] = condition
	}
	return all, rows.Err()
}

func (c *comparison) read(ctx context.Context, conn *pgx.Conn, it *archive.Item, filters map[string]string) (archive.Sum, error) {
	switch it.Kind {
	case archive.Sequence:
		// Names go as they are, not as parameters: they may be in any encoding.
		stmt := "SELECT last_value::text || chr(9) || is_called::text FROM " + server.Quote(it.RawSchema) + "." + server.Quote(it.RawName)
		results, err := conn.PgConn().Exec(ctx, stmt).ReadAll()
		if err != nil {
			return archive.Sum{}, err
		}
		return archive.SequenceSum(string(results[0].Rows[0][0])), nil
	case archive.LargeObjects:
		return c.largeObjects(ctx, conn)
	}
	rows := &archive.Rows{}
	_, err := conn.PgConn().CopyTo(ctx, &counted{c: c, w: rows}, copyOut(it, filters[it.RawSchema+"\x00"+it.RawName]))
	if err == nil {
		err = rows.Close()
	}
	return rows.Sum, err
}

// copyOut is the statement that reads what the archive's statement brought in.
func copyOut(it *archive.Item, filter string) string {
	target := strings.TrimSuffix(strings.TrimSpace(it.Copy), " FROM stdin;")
	if filter == "" {
		return target + " TO STDOUT"
	}
	table := server.Quote(it.RawSchema) + "." + server.Quote(it.RawName)
	columns := "*"
	if at := strings.LastIndex(target, " ("); at >= 0 {
		columns = strings.TrimSuffix(target[at+2:], ")")
	}
	return "COPY (SELECT " + columns + " FROM ONLY " + table + " " + filter + ") TO STDOUT"
}

// counted reports what goes through it.
type counted struct {
	c *comparison
	w io.Writer
}

func (w *counted) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if done := w.c.done.Add(int64(n)); done/(1<<20) != (done-int64(n))/(1<<20) {
		w.c.observe("verify", min(done, w.c.total), w.c.total)
	}
	return n, err
}

func (c *comparison) largeObjects(ctx context.Context, conn *pgx.Conn) (sum archive.Sum, err error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return sum, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it only read
	rows, err := tx.Query(ctx, "SELECT oid::text FROM pg_catalog.pg_largeobject_metadata")
	if err != nil {
		return sum, err
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return sum, err
	}
	objects := tx.LargeObjects()
	for _, text := range oids {
		oid, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return sum, err
		}
		object, err := objects.Open(ctx, uint32(oid), pgx.LargeObjectModeRead)
		if err != nil {
			return sum, err
		}
		digest := archive.NewLargeObject(uint32(oid))
		if _, err := io.CopyBuffer(struct{ io.Writer }{&counted{c: c, w: digest}}, struct{ io.Reader }{object}, make([]byte, 256<<10)); err != nil {
			return sum, err
		}
		if err := object.Close(); err != nil {
			return sum, err
		}
		sum.Add(digest.Digest())
	}
	return sum, nil
}
