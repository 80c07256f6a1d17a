package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/progress"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
)

// Operate does one operation: through the running supervisor where there is one, else by itself under the lock.
func (s *Session) Operate(ctx context.Context, op string, req client.Request, alone func(*Offline) (client.Reply, error)) error {
	reply, live, err := s.CarryOut(ctx, op, req, alone)
	if err != nil {
		return err
	}
	return s.PrintReply(reply, live)
}

// CarryOut is Operate for a caller who prints the reply; live tells that a running supervisor did it.
func (s *Session) CarryOut(
	ctx context.Context, op string, req client.Request, alone func(*Offline) (client.Reply, error),
) (reply client.Reply, live bool, err error) {
	live, err = s.Either(ctx, func() (err error) {
		reply, err = s.ask(ctx, op, req)
		return err
	}, func(o *Offline) (err error) {
		reply, err = alone(o)
		return err
	})
	return reply, live, err
}

// A supervisor that was just started has the lock before it has its socket: it is waited for this long.
const startPatience, startPause = 3 * time.Second, 50 * time.Millisecond

// Either has ask do something with the running supervisor, or where there is none (client.ErrNotRunning) alone under the lock;
// live tells which it was.
func (s *Session) Either(ctx context.Context, ask func() error, alone func(*Offline) error) (live bool, err error) {
	for deadline := time.Now().Add(startPatience); ; time.Sleep(startPause) {
		if err = ask(); !errors.Is(err, client.ErrNotRunning) {
			return true, err
		}
		locked := (*home.LockedError)(nil)
		err = s.UnderLock(ctx, alone)
		if !errors.As(err, &locked) || locked.Left() || ctx.Err() != nil || time.Now().After(deadline) {
			return false, err
		}
	}
}

// AskAlone is Operate for what only a running supervisor can do; without one it is client.ErrNotRunning.
func (s *Session) AskAlone(ctx context.Context, op string, r client.Request) error {
	reply, err := s.ask(ctx, op, r)
	if err != nil {
		return err
	}
	return s.PrintReply(reply, true)
}

// ask has the running supervisor do an operation, and shows how far it is. SIGINT and SIGTERM end the wait, not the
// operation: that is the supervisor's once it has taken it.
func (s *Session) ask(ctx context.Context, op string, r client.Request) (client.Reply, error) {
	ctx, stop := untilSignalled(ctx)
	defer stop()
	c := client.New(s.Socket())
	if s.Meter != nil {
		defer follow(ctx, c, s.Progress)()
	}
	reply, err := c.Do(ctx, op, r)
	sig := (*cli.Interrupted)(nil)
	switch {
	case err == nil || !errors.As(context.Cause(ctx), &sig):
		return reply, err
	case errors.Is(err, client.ErrTaken):
		return reply, cli.Advise(fmt.Errorf("%w; the running supervisor goes on with it", sig), "supervisor status")
	}
	return reply, cli.Advise(fmt.Errorf("%w; the running supervisor hasn't taken it, nothing was changed", sig), "supervisor status")
}

// untilSignalled derives a context that a signal ends; its cause is then a *cli.Interrupted.
func untilSignalled(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case sig := <-signals:
			cancel(&cli.Interrupted{Signal: sig.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// pollInterval lies between two questions to a running supervisor.
const pollInterval = 500 * time.Millisecond

// follow observes what a running supervisor is at, until stop is called. A question that isn't answered is asked again.
func follow(ctx context.Context, c *client.Client, observe progress.Observer) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pollInterval):
			}
			raw, err := c.Status(ctx)
			var st struct{ Progress *status.Progress }
			if err == nil && json.Unmarshal(raw, &st) == nil && st.Progress != nil {
				observe(progress.Event{Phase: st.Progress.Phase, Done: st.Progress.Done, Total: st.Progress.Total})
			}
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

// PrintReply prints what came of an operation; live: the running supervisor did it.
func (s *Session) PrintReply(reply client.Reply, live bool) error {
	if s.Flags.JSON {
		if reply.Result != nil {
			return cli.WriteJSON(s.Stdout, s.addressResult(reply.Result))
		}
		return cli.WriteJSON(s.Stdout, map[string]any{"message": s.Addressed(reply.Message), "live": live})
	}
	how := "no supervisor is running; the next one finds it so"
	if live {
		how = "done by the running supervisor"
	}
	s.Say("%s (%s)", reply.Message, how)
	return nil
}

// rawJSON makes a value a request's raw part; it can't fail for what the commands send.
func rawJSON(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}
