package rename

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/server"
)

// askTimeout bounds what Bound asks of the server.
const askTimeout = 30 * time.Second

// Live is the database that a restore replaces.
func (p *Place) Live() (string, error) {
	cfg, err := p.Server.Settings("")
	if err != nil {
		return "", err
	}
	return cfg.Database, nil
}

// Bound tells why the database couldn't be replaced by a copy of itself: a persistent replication slot or a subscription
// is bound to it. It changes nothing, the node may run, and it takes 30 s at most.
func (p *Place) Bound(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	live, err := p.Live()
	if err != nil {
		return err
	}
	admin, err := p.Server.Admin(ctx)
	if err != nil {
		return err
	}
	defer server.Close(admin)
	return p.CheckBound(ctx, admin, live)
}

// CheckBound refuses a database that something outlasting sessions is bound to by its oid: after a swap it would go on
// with the data of before.
func (p *Place) CheckBound(ctx context.Context, admin server.Session, live string) error {
	found, err := server.Subscriptions(ctx, admin, live)
	if err != nil {
		return p.Server.OnAdmin().Explain(ctx, "look for slots on", err)
	}
	if len(found) == 0 {
		return nil
	}
	return &hint.Error{
		Op: "replace database", Path: live, Err: fmt.Errorf("it would go on with the data of before: %s", strings.Join(found, ", ")),
		Hint: "drop it first: SELECT pg_drop_replication_slot('…'), or DROP SUBSCRIPTION …",
	}
}

// Free refuses a live database that can't be renamed, and says what is in the way. Sessions that may be ended are.
func (p *Place) Free(ctx context.Context, admin *pgx.Conn, live string) error {
	if err := p.CheckBound(ctx, admin, live); err != nil {
		return err
	}
	if err := server.NoPrepared(ctx, admin, live); err != nil {
		return p.Server.OnAdmin().ExplainUnlessHinted(ctx, "look for prepared transactions on", err)
	}
	others, err := p.Sessions.Clear(ctx, admin, live)
	if err != nil {
		return p.Server.OnAdmin().ExplainUnlessHinted(ctx, "look for sessions on", err)
	}
	if len(others) > 0 {
		return p.Sessions.InUse("replace database", live, others)
	}
	return nil
}
