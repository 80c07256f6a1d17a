package postgres

import "context"

// Bound tells why the database couldn't be replaced by a copy of itself: a persistent replication slot or a subscription
// is bound to it. It changes nothing, the node may run, and it takes 30 s at most.
func (s *Source) Bound(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	live, err := s.liveName()
	if err != nil {
		return err
	}
	admin, err := s.server.Admin(ctx)
	if err != nil {
		return err
	}
	defer s.close(admin)
	return s.bound(ctx, admin, live)
}
