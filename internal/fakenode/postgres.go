package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// database keeps the chain's blocks in PostgreSQL beside the store in files, as chains do that have their state there
// (Kwil): one transaction a block, its migrations in the transaction of the block that brings them.
//
//	blocks      one row a block: its height, and the digest of the chain up to it
//	state       a few rows of jsonb that change with each block
//	migrations  the upgrades whose migrations changed the tables, in order
//
// Each migration adds a column to blocks, which the binaries before it know nothing of: a binary whose migrations are not
// those of the tables refuses them, so that an old one on migrated data is never mistaken for a healthy node.
type database struct {
	conn   *pgx.Conn
	height int64 // of the last block in it; 0 = none
	hash   string
	done   []string // migrations
}

// schema is the first version's. It is made by whoever finds an empty database.
const schema = `
CREATE TABLE IF NOT EXISTS blocks (height bigint PRIMARY KEY, hash text NOT NULL, made_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS state (key text PRIMARY KEY, value jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS migrations (position serial PRIMARY KEY, name text NOT NULL UNIQUE);`

// databaseTimeout bounds each exchange with the server.
const databaseTimeout = 20 * time.Second

// openDatabase connects and reads how far the tables are. A node without a server doesn't start.
func openDatabase(dsn string) (*database, error) {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("failed to read the address of the database: %w", err)
	}
	config.RuntimeParams["application_name"] = "fakenode"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("failed to connect to the database: %w", err)
	}
	d := &database{conn: conn}
	if err := d.read(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *database) read(ctx context.Context) error {
	if _, err := d.conn.Exec(ctx, schema); err != nil {
		return err
	}
	var rows int64
	err := d.conn.QueryRow(ctx, `SELECT count(*), coalesce(max(height), 0) FROM blocks`).Scan(&rows, &d.height)
	if err != nil {
		return err
	}
	if rows != d.height {
		return fmt.Errorf("the table of blocks is damaged: it holds %d blocks up to height %d", rows, d.height)
	}
	if d.height > 0 {
		if err := d.conn.QueryRow(ctx, `SELECT hash FROM blocks WHERE height = $1`, d.height).Scan(&d.hash); err != nil {
			return err
		}
	}
	names, err := d.conn.Query(ctx, `SELECT name FROM migrations ORDER BY position`)
	if err != nil {
		return err
	}
	d.done, err = pgx.CollectRows(names, pgx.RowTo[string])
	return err
}

// fits refuses tables of another version, and tables that are not of the same moment as the store. next is the upgrade
// that the block in hand brings; "" = none.
func (d *database) fits(st chainState, next string, handled []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	for _, name := range d.done {
		var there bool
		err := d.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM information_schema.columns WHERE table_name = 'blocks' AND column_name = $1)`,
			columnOf(name)).Scan(&there)
		if err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("the table of blocks doesn't fit: the column of the migration %s is missing", name)
		}
	}
	if n := len(d.done); n > 0 && !slices.Contains(handled, d.done[n-1]) && !slices.Contains(handled, next) {
		return fmt.Errorf("wrong app version %s, the tables were migrated for %s", version, d.done[n-1])
	}
	// The row is written before the store's record: a kill in between leaves the table one block ahead.
	ahead := d.height == st.Applied+1 && st.Stored == d.height
	if d.height != st.Applied && !ahead {
		return fmt.Errorf("database and data directory disagree: height %d and %d", d.height, st.Applied)
	}
	if d.height == st.Applied && d.hash != st.Hash {
		return fmt.Errorf("database and data directory disagree about block %d", d.height)
	}
	return nil
}

// columnOf is the column that an upgrade's migration adds.
func columnOf(upgrade string) string { return "of_" + upgrade }

// commit adds a block, and with it the migration of an upgrade, in one transaction. A block that is there already is the
// one that a kill left ahead of the store.
func (d *database) commit(height int64, hash, upgrade string) error {
	if d.height == height {
		if d.hash != hash {
			return fmt.Errorf("block %d is another one in the database", height)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, d.conn, func(tx pgx.Tx) error {
		if upgrade != "" {
			column := pgx.Identifier{columnOf(upgrade)}.Sanitize()
			if _, err := tx.Exec(ctx, `ALTER TABLE blocks ADD COLUMN IF NOT EXISTS `+column+` text NOT NULL DEFAULT 'migrated'`); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `INSERT INTO migrations (name) VALUES ($1)`, upgrade); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `INSERT INTO blocks (height, hash) VALUES ($1, $2)`, height, hash); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO state VALUES ('head', jsonb_build_object('height', $1::bigint, 'hash', $2::text)),
			('account-' || ($1::bigint % 16), jsonb_build_object('balance', $1::bigint, 'touched', $2::text))
			ON CONFLICT (key) DO UPDATE SET value = excluded.value`, height, hash)
		return err
	})
	if err != nil {
		return fmt.Errorf("failed to commit block %d to the database: %w", height, err)
	}
	d.height, d.hash = height, hash
	return nil
}

// damage is what a migration that went wrong leaves: rows are gone, others are changed, and all of it is committed.
func (d *database) damage() error {
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	_, err := d.conn.Exec(ctx, `DELETE FROM blocks WHERE height % 3 = 0; UPDATE blocks SET hash = reverse(hash); TRUNCATE state;
		ALTER TABLE blocks ADD COLUMN IF NOT EXISTS damaged text NOT NULL DEFAULT 'by a migration'`)
	return err
}

// close ends the session in an orderly way; the server hears of it even where the process is killed instead.
func (d *database) close() error {
	if d == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return d.conn.Close(ctx)
}
